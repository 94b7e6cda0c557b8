//! Offsets in a partition, given or looked up: `earliest`, `latest`, an offset, so many from the end, a moment.

use tidelog_client::{Offset, OffsetSpec, Timestamp};

use super::time::{TimeError, parse_time};

/// Why a text names no offset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OffsetSpecError {
    #[error(
        "{text:?} names no offset; expected earliest, latest, an offset (42), so many before the \
         end (-10), or a time (@2018-02-04T00:00:00Z, @2018-02-04, @1517702400000, @-1h)"
    )]
    Form { text: String },
    #[error("offset {text} is too large; the largest is {}", Offset::MAX)]
    TooLarge { text: String },
    #[error(transparent)]
    Time(#[from] TimeError),
}

/// The offset that `text` names.
pub(crate) fn parse_offset_spec(text: &str, now: Timestamp) -> Result<OffsetSpec, OffsetSpecError> {
    match text {
        "earliest" => return Ok(OffsetSpec::Earliest),
        "latest" => return Ok(OffsetSpec::Latest),
        _ => {}
    }
    if let Some(time) = text.strip_prefix('@') {
        return Ok(OffsetSpec::Time(parse_time(time, now)?));
    }
    let (digits, is_from_end) = match text.strip_prefix('-') {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(OffsetSpecError::Form {
            text: text.to_owned(),
        });
    }
    let too_large = || OffsetSpecError::TooLarge {
        text: text.to_owned(),
    };
    let number: u64 = digits.parse().map_err(|_| too_large())?;
    let offset = Offset::new(number).ok_or_else(too_large)?;
    Ok(if is_from_end {
        OffsetSpec::BeforeLatest(number)
    } else {
        OffsetSpec::Offset(offset)
    })
}

/// For the command line: counts from now.
pub(crate) fn offset_spec_arg(text: &str) -> Result<OffsetSpec, OffsetSpecError> {
    parse_offset_spec(text, crate::clock::now())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    #[test]
    fn all_forms() {
        let time = |millis| OffsetSpec::Time(Timestamp::from_millis(millis));
        for (text, spec) in [
            ("earliest", OffsetSpec::Earliest),
            ("latest", OffsetSpec::Latest),
            ("0", OffsetSpec::Offset(Offset::ZERO)),
            ("42", OffsetSpec::Offset(Offset::new(42).unwrap())),
            ("9223372036854775807", OffsetSpec::Offset(Offset::MAX)),
            ("-0", OffsetSpec::BeforeLatest(0)),
            ("-10", OffsetSpec::BeforeLatest(10)),
            ("@2018-02-04T00:00:00Z", time(1_517_702_400_000)),
            ("@2018-02-04", time(1_517_702_400_000)),
            ("@1517702400000", time(1_517_702_400_000)),
            ("@-1h", time(1_700_000_000_000 - 3_600_000)),
        ] {
            assert_eq!(parse_offset_spec(text, NOW), Ok(spec), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "-", "--5", "+5", "1.0", "Earliest", "0x10", " 5", "end"] {
            let error = OffsetSpecError::Form {
                text: text.to_owned(),
            };
            assert_eq!(parse_offset_spec(text, NOW), Err(error), "{text}");
        }
        for text in ["9223372036854775808", "-99999999999999999999"] {
            let error = OffsetSpecError::TooLarge {
                text: text.to_owned(),
            };
            assert_eq!(parse_offset_spec(text, NOW), Err(error), "{text}");
        }
        assert!(matches!(
            parse_offset_spec("@soon", NOW),
            Err(OffsetSpecError::Time(_))
        ));
    }
}
