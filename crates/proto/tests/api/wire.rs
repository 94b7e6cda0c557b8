//! The bytes of every message.
//!
//! A golden line is one field of one message: the number and the bytes that it has in a message,
//! tag included. So a message that gets a field gets a line, and its other lines stay.

use std::collections::BTreeMap;

use prost::Message;

use crate::descriptors::files;
use crate::values::all;

/// A filled value of a message.
pub(crate) struct Case {
    /// The message.
    pub(crate) message: &'static str,
    /// Which of its values this is, where it cannot have all of its fields at once.
    pub(crate) variant: &'static str,
    bytes: Vec<u8>,
    /// Decodes bytes and encodes what came out.
    again: fn(&[u8]) -> Vec<u8>,
}

impl Case {
    pub(crate) fn new<M>(message: &'static str, variant: &'static str, value: &M) -> Self
    where
        M: Message + Default + PartialEq,
    {
        let bytes = value.encode_to_vec();
        assert!(M::decode(&bytes[..]).unwrap() == *value, "{message}");
        Self {
            message,
            variant,
            bytes,
            again: |bytes| M::decode(bytes).unwrap().encode_to_vec(),
        }
    }

    /// Numbers and bytes of the fields, in order.
    fn fields(&self) -> Vec<(u64, &[u8])> {
        let mut fields = Vec::new();
        let mut rest = &self.bytes[..];
        while !rest.is_empty() {
            let (number, len) = first_field(rest);
            let (field, behind) = rest.split_at(len);
            fields.push((number, field));
            rest = behind;
        }
        fields
    }
}

/// Number and length of the field that `bytes` begin with.
fn first_field(bytes: &[u8]) -> (u64, usize) {
    let mut rest = bytes;
    let tag = prost::encoding::decode_varint(&mut rest).unwrap();
    match tag & 7 {
        0 => {
            prost::encoding::decode_varint(&mut rest).unwrap();
        }
        1 => rest = &rest[8..],
        2 => {
            let len = prost::encoding::decode_varint(&mut rest).unwrap();
            rest = &rest[usize::try_from(len).unwrap()..];
        }
        5 => rest = &rest[4..],
        other => panic!("wire type {other}"),
    }
    (tag >> 3, bytes.len() - rest.len())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_byte_stays() {
    let mut lines = Vec::new();
    for case in all() {
        for (number, bytes) in case.fields() {
            let Case {
                message, variant, ..
            } = case;
            lines.push(format!("{message}{variant} {number} {}", hex(bytes)));
        }
    }
    crate::golden::check("tidelog.v1.wire", &lines);
}

#[test]
fn unknown_fields_are_skipped() {
    for case in all() {
        // Number 500, of each wire type: as a newer peer might send it.
        let mut newer = vec![0xa0, 0x1f, 0x96, 0x01];
        newer.extend([0xa1, 0x1f, 1, 2, 3, 4, 5, 6, 7, 8]);
        newer.extend(&case.bytes);
        newer.extend([0xa2, 0x1f, 3, b'n', b'e', b'w']);
        newer.extend([0xa5, 0x1f, 1, 2, 3, 4]);
        assert_eq!((case.again)(&newer), case.bytes, "{}", case.message);
    }
}

#[test]
fn every_message_and_field_has_a_value() {
    let mut filled: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    let cases = all();
    for case in &cases {
        let numbers = filled.entry(case.message).or_default();
        numbers.extend(case.fields().iter().map(|(number, _)| *number));
    }
    let mut messages = 0;
    for file in files() {
        for message in &file.message_type {
            let name = message.name();
            let numbers = filled
                .get(name)
                .unwrap_or_else(|| panic!("{name} has no value"));
            for field in &message.field {
                let number = u64::try_from(field.number()).unwrap();
                let what = format!("{name}.{}", field.name());
                assert!(numbers.contains(&number), "{what} is not filled");
            }
            messages += 1;
        }
    }
    assert_eq!(messages, filled.len(), "values of messages there are not");
}
