//! Durations and sizes with units.

use std::time::Duration;

/// Why a text is no duration or size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UnitError {
    #[error("{text:?} is no duration; expected numbers with units, such as 500ms, 90s or 1h30m")]
    Duration { text: String },
    #[error("{text:?} is no size; expected a number of bytes, or one with a unit: 64KiB, 1MB")]
    Size { text: String },
    #[error("it cannot be {text}; allowed are {allowed}")]
    Range { text: String, allowed: &'static str },
}

/// A duration such as `500ms`, `90s`, `1h30m`, `7d`; units are ms, s, m, h, d and w.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let error = || UnitError::Duration {
        text: text.to_owned(),
    };
    let mut rest = text;
    let mut sum = Duration::ZERO;
    if text.is_empty() {
        return Err(error());
    }
    while !rest.is_empty() {
        let (number, unit, after) = number_and_unit(rest).ok_or_else(error)?;
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            _ => return Err(error()),
        };
        let part = number
            .checked_mul(unit_ms)
            .map(Duration::from_millis)
            .ok_or_else(error)?;
        sum = sum.checked_add(part).ok_or_else(error)?;
        rest = after;
    }
    Ok(sum)
}

/// A size in bytes such as `1024`, `64KiB`, `64K` (the same), `1MB` (a million).
pub(crate) fn parse_size(text: &str) -> Result<u64, UnitError> {
    let error = || UnitError::Size {
        text: text.to_owned(),
    };
    let (number, unit, after) = number_and_unit(text).ok_or_else(error)?;
    let unit_bytes: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(error()),
    };
    if !after.is_empty() {
        return Err(error());
    }
    number.checked_mul(unit_bytes).ok_or_else(error)
}

/// The number at the start, the letters behind it, and the rest.
fn number_and_unit(text: &str) -> Option<(u64, &str, &str)> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, rest) = text.split_at(digits);
    let letters = rest
        .find(|c: char| !c.is_ascii_alphabetic())
        .unwrap_or(rest.len());
    let (unit, after) = rest.split_at(letters);
    Some((number.parse().ok()?, unit, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("0s", 0),
            ("500ms", 500),
            ("90s", 90_000),
            ("1h30m", 5_400_000),
            ("2d", 172_800_000),
            ("1w1d", 691_200_000),
        ] {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            "5",
            "s",
            "1x",
            "-1s",
            "1.5h",
            "1h ",
            "99999999999999999999s",
            "1hm",
        ] {
            let error = UnitError::Duration {
                text: text.to_owned(),
            };
            assert_eq!(parse_duration(text), Err(error), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("64KiB", 65_536),
            ("64k", 65_536),
            ("1MB", 1_000_000),
            ("2GiB", 2_147_483_648),
            ("10B", 10),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "KiB", "1.5K", "-1", "1KiB2", "1 K", "99999999999GiB"] {
            let error = UnitError::Size {
                text: text.to_owned(),
            };
            assert_eq!(parse_size(text), Err(error), "{text}");
        }
    }
}
