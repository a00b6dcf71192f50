//! How much is remembered, and for how long.

use std::time::Duration;

/// The cache's settings; TTLs are in seconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Whether anything is remembered. Without, every query is forwarded as it came.
    pub enabled: bool,
    /// Memory for answers in bytes, taken as they come.
    pub size: u64,
    /// The least TTL of an answer; zero leaves them as they are.
    pub min_ttl: u32,
    /// The greatest TTL of an answer.
    pub max_ttl: u32,
    /// The greatest TTL of an answer that says that there is nothing.
    pub max_negative_ttl: u32,
    /// How long a failure is remembered, 1 to 300 seconds (RFC 9520 §3.2).
    pub failure_ttl: u32,
    /// Whether names in use are asked for again shortly before they expire.
    pub prefetch: bool,
    /// Whether an expired answer is given where there is no other (RFC 8767).
    pub serve_stale: bool,
    /// How long a client waits for a new answer where there is a stale one.
    pub stale_patience: Duration,
    /// For how many seconds after they expire answers can be given.
    pub max_stale: u32,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            enabled: true,
            size: 64 << 20,
            min_ttl: 0,
            max_ttl: 86_400,
            max_negative_ttl: 3600,
            failure_ttl: 5,
            prefetch: true,
            serve_stale: true,
            stale_patience: Duration::from_millis(1800),
            max_stale: 86_400,
        }
    }
}

impl CacheConfig {
    /// No cache.
    pub fn off() -> Self {
        Self {
            enabled: false,
            ..Self::default()
        }
    }
}
