//! The form of `consume -f`: `%` and a letter for each part of a record, and escapes.

use std::io::{self, Write};

use tidelog_client::{ConsumedRecord, TopicName};

/// A form in which records are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Format(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(Vec<u8>),
    Topic,
    Partition,
    Offset,
    Key,
    Value,
    Timestamp,
    Headers,
}

/// Why a text is no form.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FormatError {
    #[error(
        "%{found} means nothing; known are %t topic, %p partition, %o offset, %k key, %s value, \
         %T timestamp, %h headers, %% percent"
    )]
    Part { found: char },
    #[error("\\{found} means nothing; known are \\n, \\t, \\r, \\0 and \\\\")]
    Escape { found: char },
    #[error("the format ends after a single {after:?}; write it twice for itself")]
    Cut { after: char },
}

impl std::str::FromStr for Format {
    type Err = FormatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = Vec::new();
        let mut plain = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            let part = match c {
                '%' => match chars.next().ok_or(FormatError::Cut { after: '%' })? {
                    '%' => {
                        plain.push(b'%');
                        continue;
                    }
                    't' => Part::Topic,
                    'p' => Part::Partition,
                    'o' => Part::Offset,
                    'k' => Part::Key,
                    's' => Part::Value,
                    'T' => Part::Timestamp,
                    'h' => Part::Headers,
                    found => return Err(FormatError::Part { found }),
                },
                '\\' => {
                    plain.push(
                        match chars.next().ok_or(FormatError::Cut { after: '\\' })? {
                            'n' => b'\n',
                            't' => b'\t',
                            'r' => b'\r',
                            '0' => 0,
                            '\\' => b'\\',
                            found => return Err(FormatError::Escape { found }),
                        },
                    );
                    continue;
                }
                c => {
                    plain.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
                    continue;
                }
            };
            if !plain.is_empty() {
                parts.push(Part::Text(std::mem::take(&mut plain)));
            }
            parts.push(part);
        }
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Self(parts))
    }
}

impl Format {
    /// Writes one record. Null is written like empty; bytes are written as they are.
    pub(crate) fn write(
        &self,
        out: &mut impl Write,
        topic: &TopicName,
        record: &ConsumedRecord,
    ) -> io::Result<()> {
        for part in &self.0 {
            match part {
                Part::Text(text) => out.write_all(text)?,
                Part::Topic => out.write_all(topic.as_str().as_bytes())?,
                Part::Partition => write!(out, "{}", record.partition)?,
                Part::Offset => write!(out, "{}", record.offset)?,
                Part::Timestamp => write!(out, "{}", record.timestamp)?,
                Part::Key => out.write_all(record.key.as_deref().unwrap_or_default())?,
                Part::Value => out.write_all(record.value.as_deref().unwrap_or_default())?,
                Part::Headers => {
                    for (index, header) in record.headers.iter().enumerate() {
                        if index > 0 {
                            out.write_all(b",")?;
                        }
                        out.write_all(header.key.as_str().as_bytes())?;
                        out.write_all(b"=")?;
                        out.write_all(header.value.as_deref().unwrap_or_default())?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tidelog_client::{Header, Offset, PartitionId, Timestamp};

    use super::*;

    fn record() -> ConsumedRecord {
        let header = |key: &'static str, value: Option<&'static str>| Header {
            key: key.into(),
            value: value.map(Into::into),
        };
        ConsumedRecord {
            partition: PartitionId::new(3),
            offset: Offset::new(42).unwrap(),
            timestamp: Timestamp::from_millis(-7),
            key: Some("k\u{e9}y".into()),
            value: Some(vec![0xff, b'v'].into()),
            headers: vec![header("a", Some("1")), header("a", None)],
        }
    }

    fn write(format: &str, record: &ConsumedRecord) -> Vec<u8> {
        let mut out = Vec::new();
        let topic = TopicName::new("topic.x").unwrap();
        format
            .parse::<Format>()
            .unwrap()
            .write(&mut out, &topic, record)
            .unwrap();
        out
    }

    #[test]
    fn every_part_and_escape() {
        let all = write(r"%t/%p@%o %T %k=%s [%h] 100%%\n\t\r\0\\", &record());
        let mut expected = "topic.x/3@42 -7 k\u{e9}y=".as_bytes().to_vec();
        expected.extend([0xff, b'v']);
        expected.extend(b" [a=1,a=] 100%\n\t\r\0\\");
        assert_eq!(all, expected);
        assert_eq!(
            write("plain \u{2713}", &record()),
            "plain \u{2713}".as_bytes()
        );
        assert_eq!(write("", &record()), b"");
    }

    #[test]
    fn null_is_written_like_empty() {
        let null = ConsumedRecord {
            key: None,
            value: None,
            headers: Vec::new(),
            ..record()
        };
        assert_eq!(write("<%k|%s|%h>", &null), b"<||>");
    }

    #[test]
    fn mistakes_are_named() {
        let error = |format: &str| format.parse::<Format>().unwrap_err();
        assert_eq!(error("%x"), FormatError::Part { found: 'x' });
        assert_eq!(error(r"\q"), FormatError::Escape { found: 'q' });
        assert_eq!(error("abc%"), FormatError::Cut { after: '%' });
        assert_eq!(error("abc\\"), FormatError::Cut { after: '\\' });
        assert!(error("%S").to_string().contains("%s value"));
    }
}
