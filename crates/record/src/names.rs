//! Names of topics.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The name of a topic: 1 to 249 of `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`, and neither `.` nor
/// `..`. These are Kafka's rules; they make every name safe as part of a file name. Cheap to
/// clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName(Arc<str>);

/// Why a text is no topic name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicNameError {
    /// It is empty.
    #[error(
        "a topic name cannot be empty; allowed are 1 to 249 of a-z, A-Z, 0-9, '.', '_' and '-'"
    )]
    Empty,
    /// It is too long.
    #[error("topic name of {len} characters is too long; at most 249 are allowed")]
    TooLong {
        /// Its length in characters.
        len: usize,
    },
    /// It has a character that is not allowed.
    #[error("topic name {name:?} contains {found:?}; allowed are a-z, A-Z, 0-9, '.', '_' and '-'")]
    Character {
        /// The name, which is not too long.
        name: String,
        /// The first such character.
        found: char,
    },
    /// It is `.` or `..`, which are directories.
    #[error("a topic cannot be named {name:?}, since that names a directory")]
    Directory {
        /// `.` or `..`.
        name: String,
    },
}

impl TopicName {
    /// The most characters of a name.
    pub const LEN_MAX: usize = 249;

    /// The topic name `name`.
    ///
    /// # Errors
    /// What is wrong with it: [`TopicNameError`].
    pub fn new(name: &str) -> Result<Self, TopicNameError> {
        if name.is_empty() {
            return Err(TopicNameError::Empty);
        }
        // Allowed characters are one byte each, so counting bytes lets no allowed name out; the
        // long look is only for the message.
        if name.len() > Self::LEN_MAX {
            let len = name.chars().count();
            if len > Self::LEN_MAX {
                return Err(TopicNameError::TooLong { len });
            }
        }
        let is_allowed = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if let Some(found) = name.chars().find(|c| !is_allowed(c)) {
            return Err(TopicNameError::Character {
                name: name.to_owned(),
                found,
            });
        }
        if matches!(name, "." | "..") {
            return Err(TopicNameError::Directory {
                name: name.to_owned(),
            });
        }
        Ok(Self(Arc::from(name)))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether the topic is the cluster's own, which clients can read but not write: `__*` and
    /// `_schemas`.
    pub fn is_internal(&self) -> bool {
        self.0.starts_with("__") || &*self.0 == "_schemas"
    }
}

impl FromStr for TopicName {
    type Err = TopicNameError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::new(name)
    }
}

impl TryFrom<&str> for TopicName {
    type Error = TopicNameError;

    fn try_from(name: &str) -> Result<Self, Self::Error> {
        Self::new(name)
    }
}

impl AsRef<str> for TopicName {
    fn as_ref(&self) -> &str {
        self.as_str()
    }
}

impl Borrow<str> for TopicName {
    fn borrow(&self) -> &str {
        self.as_str()
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kafkas_rules() {
        for name in ["a", "a.b_c-D9", "...", "-", &"x".repeat(249)] {
            assert_eq!(TopicName::new(name).unwrap().as_str(), name);
        }
        assert_eq!(TopicName::new(""), Err(TopicNameError::Empty));
        assert_eq!(
            TopicName::new(&"x".repeat(250)),
            Err(TopicNameError::TooLong { len: 250 })
        );
        for directory in [".", ".."] {
            let error = TopicNameError::Directory {
                name: directory.to_owned(),
            };
            assert_eq!(TopicName::new(directory), Err(error));
        }
        for (name, found) in [
            ("a/b", '/'),
            ("a b", ' '),
            ("\u{e9}t\u{e9}", '\u{e9}'),
            ("a\0", '\0'),
        ] {
            let error = TopicNameError::Character {
                name: name.to_owned(),
                found,
            };
            assert_eq!(TopicName::new(name), Err(error));
        }
        assert_eq!(
            TopicName::new(&"\u{e9}".repeat(249))
                .unwrap_err()
                .to_string()
                .chars()
                .last(),
            Some('\''),
            "249 characters of two bytes each are not too long, but not allowed"
        );
    }

    #[test]
    fn errors_say_what_is_allowed() {
        assert_eq!(
            TopicName::new("my topic").unwrap_err().to_string(),
            "topic name \"my topic\" contains ' '; allowed are a-z, A-Z, 0-9, '.', '_' and '-'"
        );
        assert_eq!(
            TopicName::new(&"x".repeat(300)).unwrap_err().to_string(),
            "topic name of 300 characters is too long; at most 249 are allowed"
        );
    }

    #[test]
    fn internal_topics() {
        for name in ["__consumer_offsets", "__", "_schemas"] {
            assert!(TopicName::new(name).unwrap().is_internal(), "{name}");
        }
        for name in ["_private", "_schemas2", "a__", "schemas"] {
            assert!(!TopicName::new(name).unwrap().is_internal(), "{name}");
        }
    }
}
