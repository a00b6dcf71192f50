//! Hash tables for what every packet and every query looks up.
//!
//! Their hasher takes a few nanoseconds, is seeded anew for every table, and does not stand against somebody who can measure
//! single lookups. They hold what is configured, or so few entries that collisions cost little.

/// A map by that hasher.
pub type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::quality::RandomState>;
