//! `name=value`, for settings and headers.

use std::collections::HashMap;

/// Why a text is no pair.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PairError {
    #[error("{text:?} is no pair; expected name=value")]
    NoEquals { text: String },
    #[error("{text:?} has no name before the '='")]
    NoName { text: String },
}

/// The name before the first `=`, and the value after it, which may be empty.
pub(crate) fn parse_pair(text: &str) -> Result<(String, String), PairError> {
    let (name, value) = text.split_once('=').ok_or_else(|| PairError::NoEquals {
        text: text.to_owned(),
    })?;
    if name.is_empty() {
        return Err(PairError::NoName {
            text: text.to_owned(),
        });
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// Pairs by name, or the name that is there twice.
pub(crate) fn by_name(pairs: &[(String, String)]) -> Result<HashMap<String, String>, String> {
    let mut map = HashMap::new();
    for (name, value) in pairs {
        if map.insert(name.clone(), value.clone()).is_some() {
            return Err(name.clone());
        }
    }
    Ok(map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_split_at_the_first_equals() {
        let pair = |name: &str, value: &str| Ok((name.to_owned(), value.to_owned()));
        assert_eq!(parse_pair("a=b"), pair("a", "b"));
        assert_eq!(parse_pair("a=b=c"), pair("a", "b=c"));
        assert_eq!(parse_pair("a="), pair("a", ""));
        assert_eq!(
            parse_pair("a"),
            Err(PairError::NoEquals {
                text: "a".to_owned()
            })
        );
        assert_eq!(
            parse_pair("=b"),
            Err(PairError::NoName {
                text: "=b".to_owned()
            })
        );
    }

    #[test]
    fn a_name_can_be_set_once() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(
            by_name(&[pair("a", "1"), pair("b", "2")]).unwrap()["b"],
            "2"
        );
        assert_eq!(
            by_name(&[pair("a", "1"), pair("a", "1")]),
            Err("a".to_owned())
        );
    }
}
