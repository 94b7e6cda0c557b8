// Writes the golden files of crates/group/golden that come from Kafka's own classes: records of the
// topic __consumer_offsets, serialized by Kafka, and commented along Kafka's own schemas.
//
//   java -cp '<directory of Kafka 4.3.1>/libs/*' scripts/kafka-group-records/Gen.java crates/group/golden
//
// Files are added, never edited: whoever changes a case here gives it a new name.

import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.nio.ByteBuffer;
import java.util.*;
import org.apache.kafka.common.Uuid;
import org.apache.kafka.common.protocol.ApiMessage;
import org.apache.kafka.common.protocol.types.*;
import org.apache.kafka.common.utils.ByteUtils;
import org.apache.kafka.coordinator.common.runtime.CoordinatorRecord;
import org.apache.kafka.coordinator.group.GroupCoordinatorRecordSerde;
import org.apache.kafka.coordinator.group.generated.*;
import org.apache.kafka.server.common.ApiMessageAndVersion;

public class Gen {
    static final long TIME = 1_700_000_000_000L;
    static Path directory;

    public static void main(String[] args) throws Exception {
        directory = Path.of(args[0]);
        offsets();
        classic();
        consumer();
        share();
        notRead();
    }

    static void offsets() throws Exception {
        var key = new OffsetCommitKey().setGroup("orders").setTopic("events").setPartition(3);
        var value = new OffsetCommitValue().setOffset(4242).setLeaderEpoch(7).setMetadata("from ü")
            .setCommitTimestamp(TIME).setExpireTimestamp(TIME + 86_400_000).setTopicId(id(0x10));
        for (int version : new int[] {0, 2, 3}) {
            write("offset-commit_v" + version + "_all", key, value, version);
        }
        write("offset-commit_v1_expires", key, value, 1);
        write("offset-commit_v4_topic-id", key, value, 4);
        write("offset-commit_v4_smallest", new OffsetCommitKey().setGroup("").setTopic("t"), new OffsetCommitValue(), 4);
        write("offset-commit_tombstone", key, null, 0);
        write("offset-commit_v0_kind-0", new LegacyOffsetCommitKey().setGroup("orders").setTopic("events").setPartition(3),
            new LegacyOffsetCommitValue().setOffset(4242).setMetadata("from ü").setCommitTimestamp(TIME), 0);
        // What a newer version could add: it is passed over.
        var newer = value.duplicate();
        newer.unknownTaggedFields().add(new RawTaggedField(1, new byte[] {1, 2, 3}));
        newer.unknownTaggedFields().add(new RawTaggedField(300, new byte[0]));
        write("offset-commit_v4_unknown-tags", key, newer, 4);
        // More than 127 bytes take two for their compact length.
        write("offset-commit_v4_long-metadata", key, value.duplicate().setMetadata("0123456789".repeat(13)), 4);
    }

    static void classic() throws Exception {
        var key = new GroupMetadataKey().setGroup("orders");
        var dynamic = new GroupMetadataValue.MemberMetadata().setMemberId("consumer-1-a").setClientId("consumer-1")
            .setClientHost("/127.0.0.1").setRebalanceTimeout(300_000).setSessionTimeout(45_000)
            .setSubscription(new byte[] {0, 1, 2}).setAssignment(new byte[] {0, 9});
        var fixed = new GroupMetadataValue.MemberMetadata().setMemberId("consumer-2-b").setGroupInstanceId("i-2")
            .setClientId("consumer-2").setClientHost("/::1").setRebalanceTimeout(60_000).setSessionTimeout(30_000)
            .setSubscription(new byte[0]).setAssignment(new byte[0]);
        var value = new GroupMetadataValue().setProtocolType("consumer").setGeneration(5).setProtocol("range")
            .setLeader("consumer-1-a").setCurrentStateTimestamp(TIME).setMembers(List.of(dynamic, fixed));
        for (int version = 0; version <= 4; version++) {
            write("group-metadata_v" + version + "_two-members", key, value, version);
        }
        write("group-metadata_v3_empty", key, new GroupMetadataValue().setProtocol(null).setLeader(null), 3);
        write("group-metadata_tombstone", key, null, 0);
    }

    static void consumer() throws Exception {
        write("consumer-group-metadata_v0_hash", new ConsumerGroupMetadataKey().setGroupId("orders"),
            new ConsumerGroupMetadataValue().setEpoch(12).setMetadataHash(0x0123456789abcdefL), 0);
        write("consumer-group-metadata_v0_no-hash", new ConsumerGroupMetadataKey().setGroupId("orders"),
            new ConsumerGroupMetadataValue().setEpoch(12), 0);

        var key = new ConsumerGroupMemberMetadataKey().setGroupId("orders").setMemberId("m-1");
        var member = new ConsumerGroupMemberMetadataValue().setInstanceId(null).setRackId(null).setClientId("consumer-1")
            .setClientHost("/127.0.0.1").setSubscribedTopicNames(List.of("events", "logs")).setSubscribedTopicRegex(null)
            .setRebalanceTimeoutMs(300_000).setServerAssignor(null).setClassicMemberMetadata(null);
        write("consumer-group-member-metadata_v0_names", key, member, 0);
        write("consumer-group-member-metadata_v0_all", key, member.duplicate().setInstanceId("i-1").setRackId("rack-a")
            .setSubscribedTopicNames(List.of()).setSubscribedTopicRegex("ev.*").setServerAssignor("uniform"), 0);
        var protocol = new ConsumerGroupMemberMetadataValue.ClassicProtocol().setName("range").setMetadata(new byte[] {0, 3, 1});
        write("consumer-group-member-metadata_v0_classic", key, member.duplicate().setClassicMemberMetadata(
            new ConsumerGroupMemberMetadataValue.ClassicMemberMetadata().setSessionTimeoutMs(45_000)
                .setSupportedProtocols(List.of(protocol))), 0);
        write("consumer-group-member-metadata_v0_classic-default", key, member.duplicate().setClassicMemberMetadata(
            new ConsumerGroupMemberMetadataValue.ClassicMemberMetadata()), 0);
        write("consumer-group-member-metadata_tombstone", key, null, 0);

        write("consumer-group-target-assignment-metadata_v0_timestamp", new ConsumerGroupTargetAssignmentMetadataKey().setGroupId("orders"),
            new ConsumerGroupTargetAssignmentMetadataValue().setAssignmentEpoch(12).setAssignmentTimestamp(TIME), 0);
        write("consumer-group-target-assignment-metadata_v0_no-timestamp", new ConsumerGroupTargetAssignmentMetadataKey().setGroupId("orders"),
            new ConsumerGroupTargetAssignmentMetadataValue().setAssignmentEpoch(12), 0);
        write("consumer-group-target-assignment-member_v0_two-topics",
            new ConsumerGroupTargetAssignmentMemberKey().setGroupId("orders").setMemberId("m-1"),
            new ConsumerGroupTargetAssignmentMemberValue().setTopicPartitions(List.of(
                new ConsumerGroupTargetAssignmentMemberValue.TopicPartition().setTopicId(id(0x10)).setPartitions(List.of(0, 2)),
                new ConsumerGroupTargetAssignmentMemberValue.TopicPartition().setTopicId(id(0x20)).setPartitions(List.of(1)))), 0);

        var current = new ConsumerGroupCurrentMemberAssignmentValue().setMemberEpoch(12).setPreviousMemberEpoch(11).setState((byte) 1);
        var currentKey = new ConsumerGroupCurrentMemberAssignmentKey().setGroupId("orders").setMemberId("m-1");
        write("consumer-group-current-member-assignment_v0_epochs", currentKey, current.duplicate()
            .setAssignedPartitions(List.of(assigned(0x10, List.of(0, 2)).setAssignmentEpochs(List.of(9, 12))))
            .setPartitionsPendingRevocation(List.of(assigned(0x20, List.of(1)).setAssignmentEpochs(List.of(10)))), 0);
        write("consumer-group-current-member-assignment_v0_no-epochs", currentKey, current.duplicate().setState((byte) 0)
            .setAssignedPartitions(List.of(assigned(0x10, List.of(0, 2)))), 0);
        write("consumer-group-current-member-assignment_v0_null-epochs", currentKey, current.duplicate().setState((byte) 0)
            .setAssignedPartitions(List.of(assigned(0x10, List.of(0, 2)).setAssignmentEpochs(null))), 0);
    }

    static void share() throws Exception {
        write("share-group-member-metadata_v0_rack", new ShareGroupMemberMetadataKey().setGroupId("jobs").setMemberId("m-1"),
            new ShareGroupMemberMetadataValue().setRackId("rack-a").setClientId("worker").setClientHost("/127.0.0.1")
                .setSubscribedTopicNames(List.of("events")), 0);
        write("share-group-metadata_v0_hash", new ShareGroupMetadataKey().setGroupId("jobs"),
            new ShareGroupMetadataValue().setEpoch(3).setMetadataHash(-2), 0);
        write("share-group-target-assignment-metadata_v0_timestamp", new ShareGroupTargetAssignmentMetadataKey().setGroupId("jobs"),
            new ShareGroupTargetAssignmentMetadataValue().setAssignmentEpoch(3).setAssignmentTimestamp(TIME), 0);
        write("share-group-target-assignment-member_v0_one-topic",
            new ShareGroupTargetAssignmentMemberKey().setGroupId("jobs").setMemberId("m-1"),
            new ShareGroupTargetAssignmentMemberValue().setTopicPartitions(List.of(
                new ShareGroupTargetAssignmentMemberValue.TopicPartition().setTopicId(id(0x10)).setPartitions(List.of(0, 1)))), 0);
        write("share-group-current-member-assignment_v0_one-topic",
            new ShareGroupCurrentMemberAssignmentKey().setGroupId("jobs").setMemberId("m-1"),
            new ShareGroupCurrentMemberAssignmentValue().setMemberEpoch(3).setPreviousMemberEpoch(2).setState((byte) 0)
                .setAssignedPartitions(List.of(new ShareGroupCurrentMemberAssignmentValue.TopicPartitions()
                    .setTopicId(id(0x10)).setPartitions(List.of(0, 1)))), 0);
        write("share-group-state-partition-metadata_v0_all", new ShareGroupStatePartitionMetadataKey().setGroupId("jobs"),
            new ShareGroupStatePartitionMetadataValue()
                .setInitializingTopics(List.of(shared(0x10, "events", List.of(2))))
                .setInitializedTopics(List.of(shared(0x10, "events", List.of(0, 1))))
                .setDeletingTopics(List.of(new ShareGroupStatePartitionMetadataValue.TopicInfo().setTopicId(id(0x20)).setTopicName("old"))), 0);
    }

    static void notRead() throws Exception {
        write("consumer-group-partition-metadata_tombstone", new ConsumerGroupPartitionMetadataKey().setGroupId("orders"), null, 0);
        write("consumer-group-regular-expression_v0_one-topic",
            new ConsumerGroupRegularExpressionKey().setGroupId("orders").setRegularExpression("ev.*"),
            new ConsumerGroupRegularExpressionValue().setTopics(List.of("events")).setVersion(8).setTimestamp(TIME), 0);
        write("streams-group-metadata_v0_unknown", new StreamsGroupMetadataKey().setGroupId("app"),
            new StreamsGroupMetadataValue().setEpoch(1).setMetadataHash(2), 0);
    }

    static ConsumerGroupCurrentMemberAssignmentValue.TopicPartitions assigned(int topic, List<Integer> partitions) {
        return new ConsumerGroupCurrentMemberAssignmentValue.TopicPartitions().setTopicId(id(topic)).setPartitions(partitions);
    }

    static ShareGroupStatePartitionMetadataValue.TopicPartitionsInfo shared(int topic, String name, List<Integer> partitions) {
        return new ShareGroupStatePartitionMetadataValue.TopicPartitionsInfo().setTopicId(id(topic)).setTopicName(name).setPartitions(partitions);
    }

    /** The id of 16 bytes that count up from `first`. */
    static Uuid id(int first) {
        var bytes = ByteBuffer.allocate(16);
        for (int n = 0; n < 16; n++) bytes.put((byte) (first + n));
        return new Uuid(bytes.getLong(0), bytes.getLong(8));
    }

    static void write(String name, ApiMessage key, ApiMessage value, int version) throws Exception {
        var record = value == null
            ? CoordinatorRecord.tombstone(key)
            : CoordinatorRecord.record(key, new ApiMessageAndVersion(value, (short) version));
        var serde = new GroupCoordinatorRecordSerde();
        var out = new StringBuilder("# Serialized by Kafka 4.3.1: " + name + "\n\n[key]\n");
        var kind = key.getClass().getSimpleName().replaceAll("Key$", "");
        new Commented(serde.serializeKey(record), out).message("kind", " " + kind, schema(key, 0));
        if (value != null) {
            out.append("\n[value]\n");
            new Commented(serde.serializeValue(record), out).message("version", "", schema(value, version));
        }
        Files.writeString(directory.resolve(name + ".hex"), out.toString());
    }

    static Schema schema(ApiMessage message, int version) throws Exception {
        return ((Schema[]) message.getClass().getField("SCHEMAS").get(null))[version];
    }

    /** Takes bytes apart along a schema, a line for each field. */
    record Commented(ByteBuffer bytes, StringBuilder out) {
        Commented(byte[] bytes, StringBuilder out) {
            this(ByteBuffer.wrap(bytes), out);
        }

        void message(String prefix, String meaning, Schema schema) {
            int start = bytes.position();
            line(start, prefix + " " + bytes.getShort() + meaning);
            structure(schema, "");
            if (bytes.hasRemaining()) throw new IllegalStateException("bytes are left");
        }

        void structure(Schema schema, String of) {
            for (BoundField field : schema.fields()) {
                if (field.def.type instanceof TaggedFields tagged) tagged(tagged);
                else field(field.def.type, of + field.def.name.replace('_', ' '));
            }
        }

        void field(Type type, String name) {
            int start = bytes.position();
            if (type instanceof Schema schema) {
                structure(schema, name + ": ");
            } else if (type.arrayElementType().isPresent()) {
                int count = length(name + " count", type.toString().startsWith("COMPACT"), 4);
                for (int n = 0; n < count; n++) field(type.arrayElementType().get(), name);
            } else {
                switch (type.toString()) {
                    case "INT8" -> line(start, name + " " + bytes.get());
                    case "INT32" -> line(start, name + " " + bytes.getInt());
                    case "INT64" -> line(start, name + " " + bytes.getLong());
                    case "UUID" -> { bytes.position(start + 16); line(start, name); }
                    case "STRING", "NULLABLE_STRING" -> content(name, length(name + " length", false, 2), true);
                    case "COMPACT_STRING", "COMPACT_NULLABLE_STRING" -> content(name, length(name + " length", true, 0), true);
                    case "BYTES" -> content(name, length(name + " length", false, 4), false);
                    case "COMPACT_BYTES" -> content(name, length(name + " length", true, 0), false);
                    default -> throw new IllegalStateException(type.toString());
                }
            }
        }

        void tagged(TaggedFields fields) {
            int start = bytes.position();
            int count = ByteUtils.readUnsignedVarint(bytes);
            line(start, "tagged fields " + count);
            for (int n = 0; n < count; n++) {
                start = bytes.position();
                int tag = ByteUtils.readUnsignedVarint(bytes);
                line(start, "tag " + tag);
                start = bytes.position();
                int length = ByteUtils.readUnsignedVarint(bytes);
                line(start, "length " + length);
                Field field = fields.fields().get(tag);
                if (field == null) {
                    content("unknown", length, false);
                } else if (field.type instanceof Schema schema) {
                    // Such a structure can be null, which the schema does not tell.
                    start = bytes.position();
                    boolean isNull = ByteUtils.readUnsignedVarint(bytes) == 0;
                    line(start, field.name.replace('_', ' ') + (isNull ? " null" : " not null"));
                    if (!isNull) structure(schema, "");
                } else {
                    field(field.type, field.name.replace('_', ' '));
                }
            }
        }

        int length(String name, boolean isCompact, int size) {
            int start = bytes.position();
            int length = isCompact ? ByteUtils.readUnsignedVarint(bytes) - 1 : size == 2 ? bytes.getShort() : bytes.getInt();
            line(start, name + (length < 0 ? ": null" : " " + length) + (isCompact ? ", compact" : ""));
            return length;
        }

        void content(String name, int length, boolean isText) {
            if (length <= 0) return;
            int start = bytes.position();
            bytes.position(start + length);
            var text = new String(bytes.array(), start, length, StandardCharsets.UTF_8);
            if (text.length() > 40) text = text.substring(0, 40) + "...";
            line(start, name + (isText ? " \"" + text + "\"" : ""));
        }

        /** The bytes from `start` on, 16 to a line, and what they are. */
        void line(int start, String comment) {
            for (int at = start; at < bytes.position(); at += 16) {
                int end = Math.min(at + 16, bytes.position());
                var hex = HexFormat.ofDelimiter(" ").formatHex(bytes.array(), at, end);
                out.append(at == start ? String.format("%-49s# %s\n", hex, comment) : hex + "\n");
            }
        }
    }
}
