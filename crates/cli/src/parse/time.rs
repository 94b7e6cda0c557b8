//! Moments: RFC 3339, dates, milliseconds, or so long ago.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use tidelog_client::Timestamp;

use super::units::parse_duration;

/// Why a text is no moment.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is no time; expected RFC 3339 (2018-02-04T00:00:00Z), a date in UTC (2018-02-04), \
     milliseconds since 1970 (1517702400000), or so long ago (-1h)"
)]
pub(crate) struct TimeError {
    text: String,
}

/// The moment that `text` names, without the `@` in front of it where offsets are meant.
///
/// What is more exact than a millisecond is rounded up: "at or after" stays true.
pub(crate) fn parse_time(text: &str, now: Timestamp) -> Result<Timestamp, TimeError> {
    let millis = parse_millis(text)
        .or_else(|| parse_ago(text, now))
        .or_else(|| parse_date(text))
        .or_else(|| parse_rfc3339(text));
    millis.map(Timestamp::from_millis).ok_or_else(|| TimeError {
        text: text.to_owned(),
    })
}

/// RFC 3339 alone, as timestamps inside of data are written.
pub(crate) fn parse_rfc3339(text: &str) -> Option<i64> {
    // The parser knows more forms than RFC 3339 has.
    let time_at = text.find(['T', 't', ' '])?;
    let has_zone = text.ends_with(['Z', 'z']) || text[time_at..].contains(['+', '-']);
    if time_at != "2018-02-04".len() || !has_zone || text.contains('[') {
        return None;
    }
    let moment: jiff::Timestamp = text.parse().ok()?;
    let has_part = moment.subsec_nanosecond().rem_euclid(1_000_000) != 0;
    // Milliseconds are cut towards zero, which before 1970 is up already.
    let is_cut_down = has_part && moment.as_nanosecond() > 0;
    Some(moment.as_millisecond() + i64::from(is_cut_down))
}

fn parse_millis(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok())?
}

fn parse_ago(text: &str, now: Timestamp) -> Option<i64> {
    let ago = parse_duration(text.strip_prefix('-')?).ok()?;
    now.millis()
        .checked_sub(i64::try_from(ago.as_millis()).ok()?)
}

fn parse_date(text: &str) -> Option<i64> {
    // The parser of dates also takes a date with a time, and would drop the time.
    if text.len() != "2018-02-04".len() {
        return None;
    }
    let date: Date = text.parse().ok()?;
    Some(
        date.to_zoned(TimeZone::UTC)
            .ok()?
            .timestamp()
            .as_millisecond(),
    )
}

/// A moment as RFC 3339 in UTC, for people.
pub(crate) fn show_time(time: Timestamp) -> String {
    match jiff::Timestamp::from_millisecond(time.millis()) {
        Ok(moment) => format!("{moment:.3}"),
        Err(_) => time.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_millis(1_700_000_000_000);

    fn read(text: &str) -> Option<i64> {
        parse_time(text, NOW).ok().map(Timestamp::millis)
    }

    #[test]
    fn all_forms() {
        for (text, millis) in [
            ("2018-02-04T00:00:00Z", 1_517_702_400_000),
            ("2018-02-04T01:00:00+01:00", 1_517_702_400_000),
            ("2018-02-04t00:00:00.5z", 1_517_702_400_500),
            ("2018-02-04 00:00:00-00:30", 1_517_704_200_000),
            ("2018-02-04", 1_517_702_400_000),
            ("1970-01-01", 0),
            ("1517702400000", 1_517_702_400_000),
            ("0", 0),
            ("-5", -5),
            ("-1h", 1_700_000_000_000 - 3_600_000),
            ("-1d12h", 1_700_000_000_000 - 129_600_000),
            ("-500ms", 1_700_000_000_000 - 500),
        ] {
            assert_eq!(read(text), Some(millis), "{text}");
        }
    }

    #[test]
    fn parts_of_a_millisecond_round_up() {
        assert_eq!(read("2018-02-04T00:00:00.0001Z"), Some(1_517_702_400_001));
        assert_eq!(read("2018-02-04T00:00:00.001000Z"), Some(1_517_702_400_001));
        assert_eq!(read("1969-12-31T23:59:59.9985Z"), Some(-1));
        assert_eq!(read("1969-12-31T23:59:59.9995Z"), Some(0));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "now",
            "-",
            "1h",
            "2018-02-04T00:00:00",
            "2018-02-30",
            "2018-2-4",
            "+1h",
            "1.5",
            "2018-02-04T00:00:00Z[UTC]",
            "99999999999999999999",
            "2018-02-04T25:00:00Z",
            "-1x",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        let message = parse_time("soon", NOW).unwrap_err().to_string();
        assert!(
            message.contains("RFC 3339") && message.contains("-1h"),
            "{message}"
        );
    }

    #[test]
    fn times_are_shown_in_utc() {
        assert_eq!(
            show_time(Timestamp::from_millis(1_517_702_400_000)),
            "2018-02-04T00:00:00.000Z"
        );
        assert_eq!(
            show_time(Timestamp::from_millis(i64::MAX)),
            i64::MAX.to_string()
        );
    }
}
