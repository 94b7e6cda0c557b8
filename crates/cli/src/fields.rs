//! Taking fields out of lines of JSON, for `produce --key-field` and `--timestamp-field`.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;
use tidelog_client::Timestamp;

use crate::parse::time::parse_rfc3339;

/// Why a line does not give a field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FieldError {
    /// The cause names no line: whoever tells it knows which line of the input it is.
    #[error("it is no JSON object: {cause}")]
    NotAnObject { cause: String },
    #[error("it has no field {field:?}")]
    Missing { field: String },
    #[error("field {field:?} is {value}, which cannot be a key; allowed are strings and numbers")]
    Key { field: String, value: String },
    #[error(
        "field {field:?} is {value}, which is no timestamp; allowed are milliseconds since 1970 as \
         a whole number, and RFC 3339 as a string"
    )]
    Timestamp { field: String, value: String },
}

/// Which fields of each line are wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) key: Option<String>,
    pub(crate) timestamp: Option<String>,
}

/// What a line gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Picked {
    pub(crate) key: Option<Vec<u8>>,
    pub(crate) timestamp: Option<Timestamp>,
}

impl Wanted {
    /// Takes the wanted fields out of a line. Without any, the line need not be JSON.
    pub(crate) fn pick(&self, line: &[u8]) -> Result<Picked, FieldError> {
        if self.key.is_none() && self.timestamp.is_none() {
            return Ok(Picked::default());
        }
        let mut parser = serde_json::Deserializer::from_slice(line);
        let not_an_object = |error: serde_json::Error| {
            let cause = error.to_string();
            let line = format!(" at line {} column ", error.line());
            FieldError::NotAnObject {
                cause: cause.replacen(&line, " at column ", 1),
            }
        };
        let (key, timestamp) = Fields(self)
            .deserialize(&mut parser)
            .map_err(not_an_object)?;
        parser.end().map_err(not_an_object)?;
        Ok(Picked {
            key: self
                .key
                .as_deref()
                .map(|field| read_key(field, key))
                .transpose()?
                .flatten(),
            timestamp: self
                .timestamp
                .as_deref()
                .map(|field| read_timestamp(field, timestamp))
                .transpose()?,
        })
    }
}

/// A string without its quotes, a number as it is written; null is a null key.
fn read_key(field: &str, value: Option<&RawValue>) -> Result<Option<Vec<u8>>, FieldError> {
    let raw = value
        .ok_or_else(|| FieldError::Missing {
            field: field.to_owned(),
        })?
        .get();
    let refused = || FieldError::Key {
        field: field.to_owned(),
        value: raw.to_owned(),
    };
    match raw.as_bytes().first() {
        Some(b'"') => {
            let text: String = serde_json::from_str(raw).map_err(|_| refused())?;
            Ok(Some(text.into_bytes()))
        }
        Some(b'-' | b'0'..=b'9') => Ok(Some(raw.as_bytes().to_vec())),
        Some(b'n') => Ok(None),
        _ => Err(refused()),
    }
}

fn read_timestamp(field: &str, value: Option<&RawValue>) -> Result<Timestamp, FieldError> {
    let raw = value
        .ok_or_else(|| FieldError::Missing {
            field: field.to_owned(),
        })?
        .get();
    let millis = if raw.starts_with('"') {
        serde_json::from_str::<String>(raw)
            .ok()
            .and_then(|text| parse_rfc3339(&text))
    } else {
        raw.parse().ok()
    };
    millis
        .map(Timestamp::from_millis)
        .ok_or_else(|| FieldError::Timestamp {
            field: field.to_owned(),
            value: raw.to_owned(),
        })
}

type Raws<'a> = (Option<&'a RawValue>, Option<&'a RawValue>);

/// Reads an object and keeps the raw text of the wanted fields; of a field that is there twice, the
/// last.
struct Fields<'a>(&'a Wanted);

impl<'de> DeserializeSeed<'de> for Fields<'_> {
    type Value = Raws<'de>;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Fields<'_> {
    type Value = Raws<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let (mut key, mut timestamp) = (None, None);
        while let Some(name) = map.next_key_seed(Name(self.0))? {
            if !name.is_key && !name.is_timestamp {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let raw: &RawValue = map.next_value()?;
            if name.is_key {
                key = Some(raw);
            }
            if name.is_timestamp {
                timestamp = Some(raw);
            }
        }
        Ok((key, timestamp))
    }
}

/// Compares a field's name without copying it.
struct Name<'a>(&'a Wanted);

struct NameMatch {
    is_key: bool,
    is_timestamp: bool,
}

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = NameMatch;

    fn deserialize<D: Deserializer<'de>>(self, parser: D) -> Result<Self::Value, D::Error> {
        parser.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = NameMatch;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a field")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(NameMatch {
            is_key: self.0.key.as_deref() == Some(name),
            is_timestamp: self.0.timestamp.as_deref() == Some(name),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(line: &str) -> Result<Option<String>, FieldError> {
        let wanted = Wanted {
            key: Some("id".to_owned()),
            timestamp: None,
        };
        let picked = wanted.pick(line.as_bytes())?;
        Ok(picked.key.map(|key| String::from_utf8(key).unwrap()))
    }

    fn timestamp(line: &str) -> Result<i64, FieldError> {
        let wanted = Wanted {
            key: None,
            timestamp: Some("time".to_owned()),
        };
        Ok(wanted.pick(line.as_bytes())?.timestamp.unwrap().millis())
    }

    #[test]
    fn what_is_no_json_is_told_with_its_column_alone() {
        let wanted = Wanted {
            key: Some("k".to_owned()),
            timestamp: None,
        };
        for line in [&b"no json"[..], b"{\"k\":1} more", b"[1]"] {
            let said = wanted.pick(line).unwrap_err().to_string();
            assert!(said.contains(" at column "), "{said}");
            assert!(!said.contains("line"), "{said}");
        }
    }

    #[test]
    fn strings_lose_their_quotes_and_numbers_stay_as_written() {
        for (line, expected) in [
            (r#"{"id":"uw"}"#, "uw"),
            (r#"{"id":""}"#, ""),
            (r#"{"id":"a\"b\u00e9\n"}"#, "a\"b\u{e9}\n"),
            (r#"{"id":1.50}"#, "1.50"),
            (r#"{"id":-1e3}"#, "-1e3"),
            (
                r#"{"id":123456789012345678901234567890}"#,
                "123456789012345678901234567890",
            ),
            (r#" { "x" : {"id":"inner"} , "id" : "outer" } "#, "outer"),
            (r#"{"\u0069d":"escaped name"}"#, "escaped name"),
            (r#"{"id":"first","id":"last"}"#, "last"),
            ("{\"id\":\"x\"}\r", "x"),
        ] {
            assert_eq!(key(line), Ok(Some(expected.to_owned())), "{line}");
        }
        assert_eq!(key(r#"{"id":null}"#), Ok(None));
    }

    #[test]
    fn lines_without_the_field_are_refused() {
        assert_eq!(
            key("{}"),
            Err(FieldError::Missing {
                field: "id".to_owned()
            })
        );
        for line in [
            "",
            "x",
            "[1]",
            "\"id\"",
            r#"{"id":"x"} tail"#,
            r#"{"id":"x""#,
            r#"{"id":1,}"#,
        ] {
            assert!(
                matches!(key(line), Err(FieldError::NotAnObject { .. })),
                "{line}"
            );
        }
        for value in ["true", "[1]", "{}"] {
            let line = format!(r#"{{"id":{value}}}"#);
            assert!(matches!(key(&line), Err(FieldError::Key { .. })), "{line}");
        }
        let wanted = Wanted {
            key: Some("id".to_owned()),
            timestamp: None,
        };
        assert!(wanted.pick(b"{\"id\":\"\xff\"}").is_err(), "not UTF-8");
    }

    #[test]
    fn timestamps_are_millis_or_rfc_3339() {
        assert_eq!(
            timestamp(r#"{"time":1517363399650}"#),
            Ok(1_517_363_399_650)
        );
        assert_eq!(timestamp(r#"{"time":-1}"#), Ok(-1));
        assert_eq!(
            timestamp(r#"{"time":"2018-02-04T00:00:00Z"}"#),
            Ok(1_517_702_400_000)
        );
        for value in [
            "1.5",
            "\"2018-02-04\"",
            "\"1517363399650\"",
            "null",
            "true",
            "1e3",
        ] {
            let line = format!(r#"{{"time":{value}}}"#);
            let error = FieldError::Timestamp {
                field: "time".to_owned(),
                value: value.to_owned(),
            };
            assert_eq!(timestamp(&line), Err(error), "{line}");
        }
    }

    #[test]
    fn one_field_can_be_both_and_without_fields_anything_goes() {
        let field = Some("time".to_owned());
        let both = Wanted {
            key: field.clone(),
            timestamp: field,
        };
        let picked = both.pick(br#"{"time":7}"#).unwrap();
        assert_eq!(picked.key.as_deref(), Some(b"7".as_slice()));
        assert_eq!(picked.timestamp, Some(Timestamp::from_millis(7)));
        assert_eq!(
            Wanted::default().pick(b"\xff no json").unwrap(),
            Picked::default()
        );
    }
}
