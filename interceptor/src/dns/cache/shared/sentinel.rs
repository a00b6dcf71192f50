//! Redis Sentinel: those who watch a store's servers know which of them is the master, and are asked before every
//! connection.
//!
//! They are asked in turn, and the one who was right last comes first the next time. A sentinel that has not heard of a
//! failover yet names a server that is no master any more, so what is named is asked for its role as well, and where it
//! is of no use another sentinel comes first.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, RedisConnectionInfo, cmd};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use super::config::Sentinels;
use super::link::{Metered, Stream, Trouble, is_local, reach};
use super::words;
use crate::bypass::Bypass;
use crate::dns::upstream::EncryptedUrl;

/// How long one sentinel has for its answer; there are others.
const PATIENCE: Duration = Duration::from_millis(500);

/// Characters of a sentinel's own words that are repeated.
const MOST_WORDS: usize = 100;

/// Asks sentinels for the master.
pub(super) struct Watchers {
    sentinels: Sentinels,
    /// How they are spoken to where they want no password.
    stranger: RedisConnectionInfo,
    /// How they are spoken to where they want one: it is the store's.
    known: Option<RedisConnectionInfo>,
    /// Whom to ask first.
    turn: AtomicUsize,
}

/// What a sentinel has said.
#[derive(Clone, Copy, Debug)]
pub(super) struct Named {
    /// Where the master is.
    pub(super) place: SocketAddr,
    /// Which sentinel says so.
    by: usize,
}

impl Watchers {
    pub(super) fn new(
        sentinels: Sentinels,
        stranger: RedisConnectionInfo,
        known: Option<RedisConnectionInfo>,
    ) -> Self {
        Self {
            sentinels,
            stranger,
            known,
            turn: AtomicUsize::new(0),
        }
    }

    /// Where the master is, as the first sentinel says who answers. Can be cancelled.
    ///
    /// The next call asks another one first, unless it turns out that this one can be [trusted](Self::trust).
    pub(super) async fn master(&self, bypass: &Bypass) -> Result<Named, Trouble> {
        let Sentinels {
            servers, master, ..
        } = &self.sentinels;
        let mut reasons = Vec::new();
        let first = self.turn.load(Ordering::Relaxed) % servers.len().max(1);
        let servers = servers.iter().enumerate();
        for (by, server) in servers.clone().cycle().skip(first).take(servers.len()) {
            // Before anything can cancel this.
            self.turn.store(by + 1, Ordering::Relaxed);
            let reason = match timeout(PATIENCE, self.ask(server, bypass)).await {
                Ok(Ok(place)) => return Ok(Named { place, by }),
                Ok(Err(trouble)) => words(trouble),
                Err(_) => format!("it does not answer within {PATIENCE:?}"),
            };
            let place = server.addresses().next();
            let place = place.map_or_else(String::new, |place| format!("{place}: "));
            reasons.push(format!("{place}{reason}"));
        }
        Err(Trouble::Failed(format!(
            "no sentinel says where the master `{master}` is ({})",
            reasons.join("; ")
        )))
    }

    /// Notes that the master is where that sentinel says.
    pub(super) fn trust(&self, named: Named) {
        self.turn.store(named.by, Ordering::Relaxed);
    }

    /// A connection to the master at `place`.
    pub(super) async fn reach(
        &self,
        place: SocketAddr,
        bypass: &Bypass,
    ) -> io::Result<Box<dyn Stream>> {
        let Some(server) = self.sentinels.servers.first() else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        reach(server.clone().at(place), self.sentinels.is_tls, bypass).await
    }

    async fn ask(&self, server: &EncryptedUrl, bypass: &Bypass) -> Result<SocketAddr, Trouble> {
        match (
            self.ask_as(&self.stranger, server, bypass).await,
            &self.known,
        ) {
            (Err(Trouble::WantsPassword), Some(known)) => self.ask_as(known, server, bypass).await,
            (answer, _) => answer,
        }
    }

    async fn ask_as(
        &self,
        who: &RedisConnectionInfo,
        server: &EncryptedUrl,
        bypass: &Bypass,
    ) -> Result<SocketAddr, Trouble> {
        let stream = reach(server.clone(), self.sentinels.is_tls, bypass).await;
        let stream = stream.map_err(|error| Trouble::Failed(error.to_string()))?;
        let stream = Metered::new(stream, Arc::default());
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let opening = MultiplexedConnection::new_with_config(who, stream, config);
        let (mut connection, driver) = opening.await?;
        let _driver = AbortOnDropHandle::new(tokio::spawn(driver));
        let mut question = cmd("SENTINEL");
        question
            .arg("GET-MASTER-ADDR-BY-NAME")
            .arg(&self.sentinels.master);
        let answer: Option<(String, String)> = question.query_async(&mut connection).await?;
        let Some((address, port)) = answer else {
            return Err(Trouble::Failed("it knows no such master".to_owned()));
        };
        let place = place(&address, &port)?;
        if !is_local(server) {
            demand_elsewhere(place)?;
        }
        Ok(place)
    }
}

/// The place that a sentinel has named.
fn place(address: &str, port: &str) -> Result<SocketAddr, Trouble> {
    let Ok(ip) = address.parse::<IpAddr>() else {
        return Err(Trouble::Failed(format!(
            "it names the master by `{}`, which is no address (`sentinel announce-hostnames no` would help)",
            address
                .chars()
                .take(MOST_WORDS)
                .collect::<String>()
                .escape_debug()
        )));
    };
    match port.parse() {
        Ok(port) if port != 0 => Ok(SocketAddr::new(ip, port)),
        _ => Err(Trouble::Failed(
            "it names the master without a port".to_owned(),
        )),
    }
}

/// Refuses what leads to this host: on another one it means that other, and whoever listens here would be given the password.
fn demand_elsewhere(place: SocketAddr) -> Result<(), Trouble> {
    let ip = place.ip().to_canonical();
    if ip.is_loopback() || ip.is_unspecified() {
        return Err(Trouble::Failed(format!(
            "it names the master by {ip}, which others cannot reach (`replica-announce-ip` would help)"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_on_another_host_is_not_at_a_loopback_or_unspecified_address() {
        let is_taken = |place: &str| demand_elsewhere(place.parse().unwrap()).is_ok();
        for place in [
            "192.0.2.1:6379",
            "[2001:db8::1]:6379",
            "[::ffff:192.0.2.1]:1",
        ] {
            assert!(is_taken(place), "{place}");
        }
        for place in [
            "127.0.0.1:6379",
            "127.9.9.9:6379",
            "0.0.0.0:6379",
            "[::1]:6379",
            "[::]:6379",
            "[::ffff:127.0.0.1]:6379",
            "[::ffff:0.0.0.0]:6379",
        ] {
            assert!(!is_taken(place), "{place}");
        }
    }

    #[test]
    fn what_a_sentinel_calls_the_master_is_repeated_in_part() {
        let Err(Trouble::Failed(reason)) = place(&"x".repeat(100_000), "6379") else {
            panic!("it is no address");
        };
        assert!(reason.len() < 300, "{reason}");
    }

    #[test]
    fn a_master_is_named_by_address_and_port() {
        let named = |address, port| place(address, port).ok().map(|place| place.to_string());
        assert_eq!(
            named("192.0.2.1", "6379").as_deref(),
            Some("192.0.2.1:6379")
        );
        assert_eq!(
            named("2001:db8::1", "1").as_deref(),
            Some("[2001:db8::1]:1")
        );
        for (address, port) in [
            ("redis.example", "6379"),
            ("", "6379"),
            ("192.0.2.1", ""),
            ("192.0.2.1", "0"),
            ("192.0.2.1", "65536"),
            ("192.0.2.1", "-1"),
        ] {
            assert_eq!(named(address, port), None, "{address} {port}");
        }
    }
}
