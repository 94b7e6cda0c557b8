//! A record as one line of JSON.

use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tidelog_client::{ConsumedRecord, TopicName};

/// Writes `{"topic","partition","offset","timestamp","key","value","headers":[[k,v]]}` and a
/// newline. Null stays null; bytes that are not UTF-8 come as `key_base64` and `value_base64`, in
/// headers as `{"base64":…}` in the place of the value.
pub(crate) fn write_record(
    out: &mut impl Write,
    topic: &TopicName,
    record: &ConsumedRecord,
) -> io::Result<()> {
    write!(
        out,
        r#"{{"topic":"{topic}","partition":{},"offset":{},"timestamp":{}"#,
        record.partition, record.offset, record.timestamp
    )?;
    write_field(out, "key", record.key.as_deref())?;
    write_field(out, "value", record.value.as_deref())?;
    out.write_all(br#","headers":["#)?;
    for (index, header) in record.headers.iter().enumerate() {
        out.write_all(if index == 0 { b"[" } else { b",[" })?;
        serde_json::to_writer(&mut *out, header.key.as_str())?;
        out.write_all(b",")?;
        match header.value.as_deref() {
            None => out.write_all(b"null")?,
            Some(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => serde_json::to_writer(&mut *out, text)?,
                Err(_) => write!(out, r#"{{"base64":"{}"}}"#, STANDARD.encode(bytes))?,
            },
        }
        out.write_all(b"]")?;
    }
    out.write_all(b"]}\n")
}

fn write_field(out: &mut impl Write, name: &str, bytes: Option<&[u8]>) -> io::Result<()> {
    let Some(bytes) = bytes else {
        return write!(out, r#","{name}":null"#);
    };
    match std::str::from_utf8(bytes) {
        Ok(text) => {
            write!(out, r#","{name}":"#)?;
            Ok(serde_json::to_writer(out, text)?)
        }
        Err(_) => write!(out, r#","{name}_base64":"{}""#, STANDARD.encode(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use tidelog_client::{Header, Offset, PartitionId, Timestamp};

    use super::*;

    fn line(key: Option<&[u8]>, value: Option<&[u8]>, headers: Vec<Header>) -> String {
        let record = ConsumedRecord {
            partition: PartitionId::new(3),
            offset: Offset::new(42).unwrap(),
            timestamp: Timestamp::from_millis(1_517_363_399_650),
            key: key.map(|key| key.to_vec().into()),
            value: value.map(|value| value.to_vec().into()),
            headers,
        };
        let mut out = Vec::new();
        write_record(&mut out, &TopicName::new("t").unwrap(), &record).unwrap();
        let line = String::from_utf8(out).unwrap();
        serde_json::from_str::<serde_json::Value>(&line).expect("it is JSON");
        line
    }

    #[test]
    fn fields_come_in_the_documented_order() {
        let header = |value: Option<&[u8]>| Header {
            key: "h\"".into(),
            value: value.map(|value| value.to_vec().into()),
        };
        assert_eq!(
            line(
                Some(b"k"),
                Some(b"{\"a\":1}"),
                vec![header(Some(b"v")), header(None)]
            ),
            "{\"topic\":\"t\",\"partition\":3,\"offset\":42,\"timestamp\":1517363399650,\
             \"key\":\"k\",\"value\":\"{\\\"a\\\":1}\",\
             \"headers\":[[\"h\\\"\",\"v\"],[\"h\\\"\",null]]}\n"
        );
    }

    #[test]
    fn null_stays_null_and_bytes_become_base64() {
        assert_eq!(
            line(None, Some(&[0xff, 0x00]), Vec::new()),
            "{\"topic\":\"t\",\"partition\":3,\"offset\":42,\"timestamp\":1517363399650,\
             \"key\":null,\"value_base64\":\"/wA=\",\"headers\":[]}\n"
        );
        let binary = Header {
            key: "b".into(),
            value: Some(vec![0xfe].into()),
        };
        let text = line(Some(&[0xfe]), None, vec![binary]);
        assert!(
            text.contains(r#""key_base64":"/g==","value":null"#),
            "{text}"
        );
        assert!(text.contains(r#"[["b",{"base64":"/g=="}]]"#), "{text}");
    }

    #[test]
    fn empty_is_not_null() {
        let text = line(Some(b""), Some(b""), Vec::new());
        assert!(text.contains(r#""key":"","value":"""#), "{text}");
    }
}
