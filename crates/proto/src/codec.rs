//! The codec of the API's services: protobuf, with a bound on what a message takes once decoded.
//!
//! An empty record takes two bytes in a request and more than a hundred in memory. The size of the
//! request alone therefore does not bound what decoding it costs, so the decoder first walks over
//! the bytes, without allocating, and counts the messages nested in them.

use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::LazyLock;

use bytes::Buf;
use prost::{Message, Name};
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::{ProstCodec, ProstEncoder};

/// How many entries one request may have: messages nested in it (records, headers, partitions,
/// settings) and texts in lists. Each takes up to about 160 bytes in memory beside its own bytes.
pub const REQUEST_ENTRIES_MAX: usize = 250_000;

/// What the status of a refused request begins with; the number of entries found and the limit
/// follow.
pub const TOO_MANY_ENTRIES: &str = "too many entries in one request";

/// [`ProstCodec`], but a request with more than [`REQUEST_ENTRIES_MAX`] entries is refused
/// with `INVALID_ARGUMENT` before it is decoded. Answers are not counted: who asks for them bounds
/// them.
#[derive(Debug)]
pub struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Name + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = ProstEncoder<T>;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::raw_encoder(BufferSettings::default())
    }

    fn decoder(&mut self) -> Self::Decoder {
        let shape = U::NAME
            .ends_with("Request")
            .then(|| SHAPES.by_name.get(&U::full_name()).copied())
            .flatten();
        BoundedDecoder {
            shape,
            _decodes: PhantomData,
        }
    }
}

/// The decoder of [`BoundedCodec`].
#[derive(Debug)]
pub struct BoundedDecoder<U> {
    /// Where the message stands in [`SHAPES`]; `None` for what is not counted.
    shape: Option<usize>,
    _decodes: PhantomData<U>,
}

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // A frame lies in one piece: tonic collects it before it is decoded.
        debug_assert_eq!(buf.chunk().len(), buf.remaining());
        if let Some(shape) = self.shape {
            let found = SHAPES.entries(shape, buf.chunk());
            if found > REQUEST_ENTRIES_MAX {
                return Err(Status::invalid_argument(format!(
                    "{TOO_MANY_ENTRIES}: {found}, allowed are {REQUEST_ENTRIES_MAX}"
                )));
            }
        }
        U::decode(buf)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}

/// Which fields of the API's messages hold entries.
struct Shapes {
    by_name: HashMap<String, usize>,
    /// For each message its fields that hold messages, as (field number, which message), or lists
    /// of texts or bytes, which are no message.
    nested: Vec<Vec<(u64, Option<usize>)>>,
}

static SHAPES: LazyLock<Shapes> = LazyLock::new(|| {
    let files = FileDescriptorSet::decode(crate::FILE_DESCRIPTOR_SET)
        .expect("the descriptors were encoded when this crate was built");
    let mut messages = Vec::new();
    for file in &files.file {
        for message in &file.message_type {
            collect(file.package(), message, &mut messages);
        }
    }
    let by_name: HashMap<String, usize> = messages
        .iter()
        .enumerate()
        .map(|(at, (name, _))| (name.clone(), at))
        .collect();
    let nested = messages
        .iter()
        .map(|(_, message)| {
            let entries = |field: &prost_types::FieldDescriptorProto| {
                let number = u64::try_from(field.number()).ok()?;
                match field.r#type() {
                    Type::Message => {
                        let name = field.type_name().trim_start_matches('.');
                        Some((number, Some(*by_name.get(name)?)))
                    }
                    Type::String | Type::Bytes if field.label() == Label::Repeated => {
                        Some((number, None))
                    }
                    _ => None,
                }
            };
            message.field.iter().filter_map(entries).collect()
        })
        .collect();
    Shapes { by_name, nested }
});

/// `message` and those declared inside of it (the entries of maps are), with their full names.
fn collect<'a>(
    scope: &str,
    message: &'a DescriptorProto,
    all: &mut Vec<(String, &'a DescriptorProto)>,
) {
    let name = format!("{scope}.{}", message.name());
    for inner in &message.nested_type {
        collect(&name, inner, all);
    }
    all.push((name, message));
}

impl Shapes {
    /// How many entries the message `shape` that `bytes` are has. Ends at what is not
    /// protobuf, which decoding will refuse, and soon after the limit.
    fn entries(&self, shape: usize, mut bytes: &[u8]) -> usize {
        let nested = &self.nested[shape];
        let mut found = 0;
        while !bytes.is_empty() && found <= REQUEST_ENTRIES_MAX {
            let Some((number, value)) = next_field(&mut bytes) else {
                break;
            };
            let Some(value) = value else {
                continue;
            };
            if let Some((_, inner)) = nested.iter().find(|(nested, _)| *nested == number) {
                found += 1 + inner.map_or(0, |inner| self.entries(inner, value));
            }
        }
        found
    }
}

/// Takes the next field off `bytes`: its number, and its bytes if it has a length.
fn next_field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Option<&'a [u8]>)> {
    let key = varint(bytes)?;
    let skip = match key & 7 {
        0 => {
            varint(bytes)?;
            return Some((key >> 3, None));
        }
        1 => 8,
        2 => usize::try_from(varint(bytes)?).ok()?,
        5 => 4,
        // Groups are not used, and the decoder refuses them in known fields.
        _ => return None,
    };
    let (value, rest) = bytes.split_at_checked(skip)?;
    *bytes = rest;
    Some((key >> 3, (key & 7 == 2).then_some(value)))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (first, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(first & 0x7f) << shift;
        if first & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::v1;

    fn entries<M: Message + Name>(message: &M) -> usize {
        let shape = SHAPES.by_name[&M::full_name()];
        SHAPES.entries(shape, &message.encode_to_vec())
    }

    fn records(records: Vec<v1::NewRecord>) -> v1::ProduceRequest {
        let payload = v1::append_request::Payload::Records(v1::NewRecords {
            records,
            ..v1::NewRecords::default()
        });
        v1::ProduceRequest {
            correlation_id: 1,
            append: Some(v1::AppendRequest {
                topic: "t".to_owned(),
                payload: Some(payload),
                ..v1::AppendRequest::default()
            }),
        }
    }

    #[test]
    fn nested_messages_are_counted_wherever_they_are() {
        assert_eq!(entries(&v1::AppendRequest::default()), 0);
        // The append, the list of records, and each record with its headers.
        assert_eq!(entries(&records(Vec::new())), 2);
        let header = v1::Header {
            key: "k".to_owned(),
            value: None,
        };
        let record = v1::NewRecord {
            key: Some(Bytes::from_static(b"\x0a\x02\x0a\x00")),
            value: Some(Bytes::from_static(b"\x0a\x00\x0a\x00")),
            headers: vec![header.clone(), header],
            timestamp_ms: Some(-1),
        };
        assert_eq!(entries(&records(vec![record.clone(), record])), 8);
        let settings = [("a", "1"), ("b", "2"), ("c", "3")];
        let create = v1::CreateTopicRequest {
            name: "t".to_owned(),
            settings: settings
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .collect(),
            ..v1::CreateTopicRequest::default()
        };
        assert_eq!(entries(&create), 3);
        let alter = v1::AlterTopicRequest {
            name: "t".to_owned(),
            reset: vec![String::new(); 5],
            ..v1::AlterTopicRequest::default()
        };
        assert_eq!(entries(&alter), 5);
    }

    #[test]
    fn counting_ends_soon_after_the_limit() {
        let many = records(vec![v1::NewRecord::default(); 2 * REQUEST_ENTRIES_MAX]);
        let found = entries(&many);
        assert!(found > REQUEST_ENTRIES_MAX);
        assert!(found < REQUEST_ENTRIES_MAX + 10, "{found}");
    }

    #[test]
    fn what_is_no_message_is_left_to_the_decoder() {
        let shape = SHAPES.by_name["tidelog.v1.ProduceRequest"];
        let whole = records(vec![v1::NewRecord::default(); 3]).encode_to_vec();
        for len in 0..whole.len() {
            assert!(SHAPES.entries(shape, &whole[..len]) <= 5, "{len}");
        }
        for garbage in [
            &[0xff; 30][..],
            &[0x0b, 0x0c],
            &[0x12, 0xff, 0xff, 0xff, 0xff, 0x0f],
        ] {
            assert_eq!(SHAPES.entries(shape, garbage), 0);
        }
    }
}
