//! `raft` measures entries, and encodes and decodes configuration changes, by the trait of another
//! library of messages. Its methods are carried out by Prost here.

use std::any::Any;
use std::io;

use prost::Message as _;
use protobuf::reflect::MessageDescriptor;
use protobuf::{
    Clear, CodedInputStream, CodedOutputStream, Message, ProtobufError, ProtobufResult,
    UnknownFields,
};

use crate::eraftpb::{ConfChange, ConfChangeV2, Entry};

macro_rules! messages {
    ($($message:ident),*) => {
        $(
            impl Clear for $message {
                fn clear(&mut self) {
                    *self = Self::default();
                }
            }

            impl Message for $message {
                fn descriptor(&self) -> &'static MessageDescriptor {
                    unreachable!("raft does not ask how its messages are made")
                }

                fn is_initialized(&self) -> bool {
                    true
                }

                fn merge_from(&mut self, is: &mut CodedInputStream<'_>) -> ProtobufResult<()> {
                    let mut bytes = Vec::new();
                    while !is.eof()? {
                        bytes.push(is.read_raw_byte()?);
                    }
                    let merged = self.merge(bytes.as_slice());
                    merged.map_err(|e| ProtobufError::IoError(io::Error::other(e)))
                }

                fn write_to_with_cached_sizes(
                    &self,
                    os: &mut CodedOutputStream<'_>,
                ) -> ProtobufResult<()> {
                    os.write_raw_bytes(&self.encode_to_vec())
                }

                fn compute_size(&self) -> u32 {
                    u32::try_from(self.encoded_len()).unwrap_or(u32::MAX)
                }

                fn get_cached_size(&self) -> u32 {
                    self.compute_size()
                }

                fn get_unknown_fields(&self) -> &UnknownFields {
                    unreachable!("raft does not ask for fields that nobody knows")
                }

                fn mut_unknown_fields(&mut self) -> &mut UnknownFields {
                    unreachable!("raft does not ask for fields that nobody knows")
                }

                fn as_any(&self) -> &dyn Any {
                    self
                }

                fn new() -> Self {
                    Self::default()
                }

                fn default_instance() -> &'static Self {
                    Self::default_ref()
                }
            }
        )*
    };
}

messages!(Entry, ConfChange, ConfChangeV2);

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use bytes::Bytes;

    use super::*;
    use crate::eraftpb::ConfChangeType;
    use crate::new_conf_change_single;

    fn through<M: Message + PartialEq + Debug>(message: &M) -> Vec<u8> {
        let bytes = message.write_to_bytes().expect("it is written to memory");
        assert_eq!(bytes.len(), message.compute_size() as usize);
        let mut again = M::new();
        again.merge_from_bytes(&bytes).expect("it was just written");
        assert_eq!(again, *message);
        bytes
    }

    /// These bytes are in logs: they stay.
    #[test]
    fn changes_are_encoded_as_they_always_were() {
        let change = ConfChangeV2 {
            changes: vec![
                new_conf_change_single(3, ConfChangeType::AddNode),
                new_conf_change_single(300, ConfChangeType::RemoveNode),
            ],
            context: Bytes::from_static(b"why"),
            transition: 2,
        };
        let bytes = through(&change);
        let expected = b"\x08\x02\x12\x02\x10\x03\x12\x05\x08\x01\x10\xac\x02\x1a\x03why";
        assert_eq!(bytes, expected);
        through(&ConfChange {
            node_id: 7,
            ..ConfChange::default()
        });
    }

    #[test]
    fn the_size_of_an_entry_is_that_of_its_encoding() {
        let entry = Entry {
            term: 1 << 40,
            index: u64::MAX,
            data: Bytes::from(vec![7; 1000]),
            ..Entry::default()
        };
        assert!(through(&entry).len() > 1000);
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert!(
            ConfChangeV2::default()
                .merge_from_bytes(b"\x12\xff")
                .is_err()
        );
    }
}
