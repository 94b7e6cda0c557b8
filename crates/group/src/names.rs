//! Names of groups and their members.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;

/// The most bytes that a name of a group, of a member or of an instance has.
const LEN_MAX: usize = 255;

/// Why a text names no group, member or instance.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It is empty.
    #[error("the name of a {what} cannot be empty; allowed are 1 to {LEN_MAX} bytes of UTF-8")]
    Empty {
        /// What it was to name.
        what: &'static str,
    },
    /// It is too long.
    #[error("the name of a {what} has {len} bytes; allowed are 1 to {LEN_MAX}")]
    TooLong {
        /// What it was to name.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
    },
    /// It has a control character, which no terminal and no log line shows as what it is.
    #[error("the name of a {what} has the control character {found:?}; allowed are all others")]
    Control {
        /// What it was to name.
        what: &'static str,
        /// The first such character.
        found: char,
    },
}

/// Checks a name by the rules that all have in common.
fn check(name: &str, what: &'static str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what });
    }
    if name.len() > LEN_MAX {
        let len = name.len();
        return Err(NameError::TooLong { what, len });
    }
    match name.chars().find(|c| c.is_control()) {
        Some(found) => Err(NameError::Control { what, found }),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name `name`.
            ///
            /// # Errors
            /// What is wrong with it.
            pub fn new(name: &str) -> Result<Self, NameError> {
                check(name, $what)?;
                Ok(Self(Arc::from(name)))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }
    };
}

name!(
    /// The name of a group: 1 to 255 bytes of UTF-8 without control characters. Cheap to clone.
    GroupId, "group"
);
name!(
    /// The name of a member within its group: 1 to 255 bytes of UTF-8 without control characters. Cheap to clone.
    MemberId, "member"
);
name!(
    /// The name under which a static member comes back: 1 to 255 bytes of UTF-8 without control characters. Cheap to
    /// clone.
    InstanceId, "group instance"
);
