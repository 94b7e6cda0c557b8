//! Merges flags, environment, file and defaults, and remembers who won.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::settings::{SETTINGS, Setting, VARIABLE_PREFIX};
use super::{CONFIG_FILE, Config, ServeArgs};

/// The largest configuration file, in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// A configuration with the origin of every value.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The values, each checked.
    pub config: Config,
    /// One entry a setting, in a fixed order.
    pub explained: Vec<Explained>,
    /// What looks like a mistake but is none for sure: variables with nearly the name of a setting.
    pub warnings: Vec<String>,
}

/// One value and who set it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explained {
    /// The setting's name, as it is in the file.
    pub key: &'static str,
    /// The value in force.
    pub value: String,
    /// Who set it.
    pub source: Source,
}

/// Who set a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A flag of the command line: its name with the hyphens.
    Flag(String),
    /// A variable of the environment: its name.
    Environment(String),
    /// The configuration file: its path.
    File(PathBuf),
    /// Nobody.
    Default,
}

impl Source {
    /// `flag`, `environment`, `file` or `default`.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Flag(_) => "flag",
            Self::Environment(_) => "environment",
            Self::File(_) => "file",
            Self::Default => "default",
        }
    }

    /// Which flag, variable or file.
    pub fn place(&self) -> Option<String> {
        match self {
            Self::Flag(name) | Self::Environment(name) => Some(name.clone()),
            Self::File(path) => Some(path.display().to_string()),
            Self::Default => None,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place() {
            Some(place) => write!(f, "{} {place}", self.kind()),
            None => f.write_str(self.kind()),
        }
    }
}

/// Why there is no configuration to start with.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("the configuration file {} cannot be read: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is too large to be one.
    #[error("the configuration file {} is larger than {max} bytes", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// The limit.
        max: u64,
    },
    /// The file is not TOML.
    #[error("the configuration file {} is not TOML: {what}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        what: String,
    },
    /// The file has a key that means nothing.
    #[error("unknown key {key:?} in {}: did you mean {nearest:?}? Known are {}",
            path.display(), known_keys())]
    UnknownKey {
        /// The file.
        path: PathBuf,
        /// The key.
        key: String,
        /// The known key that is most like it.
        nearest: &'static str,
    },
    /// A value is not allowed.
    #[error("{key} cannot be {value:?} (from {from}): allowed is {allowed}")]
    Value {
        /// The setting.
        key: &'static str,
        /// What was given.
        value: String,
        /// Who gave it.
        from: Source,
        /// What is allowed.
        allowed: &'static str,
    },
    /// A variable of the environment is not text.
    #[error("the variable {name} is not UTF-8")]
    NotText {
        /// Its name.
        name: String,
    },
    /// Two limits do not go together.
    #[error("{key} ({value}) must be at least {than} ({least})")]
    TooSmall {
        /// The limit that is too small.
        key: &'static str,
        /// Its value.
        value: usize,
        /// The setting that it must not be below.
        than: &'static str,
        /// That setting's value.
        least: usize,
    },
    /// Two settings do not go together.
    #[error("{key} does not go with {with}: allowed is {allowed}")]
    Apart {
        /// The setting that is wrong, or is missing.
        key: &'static str,
        /// The other, and its value where that says more.
        with: String,
        /// What would be right.
        allowed: &'static str,
    },
}

fn known_keys() -> String {
    SETTINGS
        .iter()
        .map(|setting| setting.key)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Merges all sources: a flag wins over the environment, that over the file, that over the default.
///
/// `variables` are those of the environment. The file is the one `args` names, which must be
/// there, or else [`CONFIG_FILE`] in `dir`, which need not.
///
/// # Errors
/// What is wrong with any value, also one that another source overrules: [`ConfigError`].
pub fn resolve(
    args: &ServeArgs,
    variables: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
    dir: &Path,
) -> Result<Resolved, ConfigError> {
    let file = match &args.config {
        Some(path) => Some((path.clone(), read_file(path)?)),
        None => {
            let path = dir.join(CONFIG_FILE);
            match read_file(&path) {
                Ok(table) => Some((path, table)),
                Err(ConfigError::File { source, .. })
                    if source.kind() == io::ErrorKind::NotFound =>
                {
                    None
                }
                Err(error) => return Err(error),
            }
        }
    };
    let variables = own_variables(variables);
    if let Some((path, table)) = &file
        && let Some(key) = table.keys().find(|key| Setting::find(key).is_none())
    {
        let (path, key) = (path.clone(), key.clone());
        return Err(ConfigError::UnknownKey {
            path,
            nearest: nearest(&key).0.key,
            key,
        });
    }

    let mut config = Config::default();
    let mut explained = Vec::with_capacity(SETTINGS.len());
    for setting in SETTINGS {
        let source = read_setting(setting, args, &variables, file.as_ref(), &mut config)?;
        explained.push(Explained {
            key: setting.key,
            value: (setting.show)(&config),
            source,
        });
    }
    config.validate()?;
    let warnings = variables
        .iter()
        .filter_map(|(name, _)| mistyped(name))
        .collect();
    Ok(Resolved {
        config,
        explained,
        warnings,
    })
}

/// Reads one setting from all its sources, the weakest first, so that each value is checked and
/// the strongest stays.
fn read_setting(
    setting: &'static Setting,
    args: &ServeArgs,
    variables: &[(String, std::ffi::OsString)],
    file: Option<&(PathBuf, toml::Table)>,
    config: &mut Config,
) -> Result<Source, ConfigError> {
    let mut winner = Source::Default;
    let mut take = |value: &str, from: Source, config: &mut Config| {
        (setting.read)(value, config).ok_or_else(|| ConfigError::Value {
            key: setting.key,
            value: value.to_owned(),
            from: from.clone(),
            allowed: setting.allowed,
        })?;
        winner = from;
        Ok(())
    };
    if let Some((path, table)) = file
        && let Some(value) = table.get(setting.key)
    {
        let text = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Integer(number) => number.to_string(),
            // No setting has such a value, so this is what the error shows.
            other => format!("a value of type {}", other.type_str()),
        };
        take(&text, Source::File(path.clone()), config)?;
    }
    let name = setting.variable();
    if let Some((_, value)) = variables.iter().find(|(known, _)| *known == name) {
        let Some(value) = value.to_str() else {
            return Err(ConfigError::NotText { name });
        };
        take(value, Source::Environment(name), config)?;
    }
    if let Some(value) = args.get(setting.key) {
        take(value, Source::Flag(setting.flag()), config)?;
    }
    Ok(winner)
}

fn own_variables(
    variables: impl IntoIterator<Item = (std::ffi::OsString, std::ffi::OsString)>,
) -> Vec<(String, std::ffi::OsString)> {
    variables
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
        .filter(|(name, _)| name.starts_with(VARIABLE_PREFIX))
        .collect()
}

fn read_file(path: &Path) -> Result<toml::Table, ConfigError> {
    let not_read = |source| ConfigError::File {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(not_read)?;
    let len = file
        .take(FILE_BYTES_MAX + 1)
        .read_to_string(&mut text)
        .map_err(not_read)?;
    if u64::try_from(len).map_or(true, |len| len > FILE_BYTES_MAX) {
        return Err(ConfigError::FileTooLarge {
            path: path.to_owned(),
            max: FILE_BYTES_MAX,
        });
    }
    text.parse::<toml::Table>()
        .map_err(|error| ConfigError::Syntax {
            path: path.to_owned(),
            what: error.to_string().trim_end().to_owned(),
        })
}

/// A warning about a variable that nearly has the name of a setting. Others are left alone: the
/// program's other commands have variables too.
fn mistyped(name: &str) -> Option<String> {
    let key = name.strip_prefix(VARIABLE_PREFIX)?.to_ascii_lowercase();
    let (setting, distance) = nearest(&key);
    (1..=2).contains(&distance).then(|| {
        format!(
            "the variable {name} means nothing: did you mean {}?",
            setting.variable()
        )
    })
}

/// The setting whose key is most like `key`, and in how many places they differ.
fn nearest(key: &str) -> (&'static Setting, usize) {
    // Longer than any key: nothing is like it, and the comparison must not take long.
    let key: String = key.chars().take(64).collect();
    SETTINGS
        .iter()
        .map(|setting| (setting, distance(&key, setting.key)))
        .min_by_key(|(_, distance)| *distance)
        .expect("there are settings")
}

/// How many characters must be put in, taken out or changed to make `a` of `b`.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "abc", 3),
            ("abc", "abc", 0),
            ("grpc-addr", "grpc_addr", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), expected);
            assert_eq!(distance(b, a), expected);
        }
    }

    #[test]
    fn only_near_misses_are_warned_about() {
        assert_eq!(mistyped("TIDELOG_BROKER"), None);
        assert_eq!(mistyped("TIDELOG_GRPC_ADDR"), None);
        let warning = mistyped("TIDELOG_GRPC_ADR").unwrap();
        assert!(warning.contains("TIDELOG_GRPC_ADDR"), "{warning}");
    }
}
