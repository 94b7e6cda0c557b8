//! Reading what people write: offsets, times, durations, sizes, formats. Pure functions.

pub(crate) mod format;
pub(crate) mod nodes;
pub(crate) mod offset_spec;
pub(crate) mod pairs;
pub(crate) mod time;
pub(crate) mod units;
