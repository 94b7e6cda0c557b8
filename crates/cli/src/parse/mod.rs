//! Reading what people write: positions, times, durations, sizes, formats. Pure functions.

pub(crate) mod format;
pub(crate) mod pairs;
pub(crate) mod position;
pub(crate) mod time;
pub(crate) mod units;
