//! One client's TCP connection: queries as they come, replies as they are ready, memory within bounds (RFC 7766).

use std::net::IpAddr;
use std::pin::pin;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};
use tracing::trace;

use super::admission::Permit;
use super::framing::{self, Pushed};
use super::padding;
use super::query::Query;
use super::resolver::{Answer, AtOnce, Missed};
use super::server::{Shared, Taken};
use super::wire::{ExtendedError, HEADER_LEN, Rcode};
use crate::rules::Transport;
use crate::service::BoxStream;

/// Queries of one connection in flight; beyond it nothing more is read.
const MAX_IN_FLIGHT: usize = 128;

/// Octets of replies that wait for the client to take them; beyond it nothing more is read or answered.
const MAX_OUTBOUND: usize = 64 * 1024;

/// How often a connection that is not read from is looked at for a reset.
const PROBE: Duration = Duration::from_millis(500);

/// The longest message that a length field can announce.
const MAX_MESSAGE: usize = u16::MAX as usize;

/// Octets of which padded replies have a multiple (RFC 8467 §4.1).
const PADDING_BLOCK: usize = 468;

/// Who can read a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channel {
    /// Everybody on the way.
    Plain,
    /// Nobody else; lengths are what is left to hide.
    Encrypted,
}

impl Channel {
    fn padded(self, mut answer: Answer, is_wanted: bool) -> Answer {
        if self == Self::Encrypted && is_wanted {
            padding::pad(&mut answer.wire, PADDING_BLOCK);
        }
        answer
    }
}

/// Serves `stream` until the client is done, idle for too long or breaks the framing, or the service stops.
///
/// A client that shuts down its sending side gets all its replies. The idle time runs while nothing is in flight,
/// and begins anew with a whole message or a reply that moves on, not with single octets. The queries of a client that
/// resets the connection are given up.
pub(super) async fn serve(shared: &Shared, client: IpAddr, stream: BoxStream, channel: Channel) {
    let _open = shared.meter.connection();
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut inbound = BytesMut::new();
    let mut outbound = BytesMut::new();
    let mut in_flight = FuturesUnordered::new();
    let mut reading = true;
    let mut unflushed = false;
    let mut active = Instant::now();
    let mut expiry = pin!(sleep_until(active + shared.idle_timeout()));
    let mut probe = interval_at(active + PROBE, PROBE);
    probe.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while in_flight.len() < MAX_IN_FLIGHT && outbound.len() < MAX_OUTBOUND {
            let Some(message) = framing::take(&mut inbound) else {
                break;
            };
            active = Instant::now();
            if message.len() < HEADER_LEN {
                trace!("message without header on a connection");
                shared.meter.ignored.add();
                reading = false;
                inbound.clear();
                break;
            }
            match admit(shared, client, &message, channel) {
                Admitted::Now(answer) => {
                    framing::put(&mut outbound, &shared.finish(answer, MAX_MESSAGE));
                }
                Admitted::Later(query, missed, permit) => {
                    in_flight.push(answer(shared, query, missed, permit, channel));
                }
                Admitted::Never => {}
            }
        }
        let is_done = in_flight.is_empty() && outbound.is_empty() && !unflushed;
        if is_done && !reading {
            break;
        }
        let has_room = in_flight.len() < MAX_IN_FLIGHT && outbound.len() < MAX_OUTBOUND;
        if reading && has_room {
            framing::reserve(&mut inbound);
        }
        tokio::select! {
            Some(answer) = in_flight.next(), if outbound.len() < MAX_OUTBOUND => {
                framing::put(&mut outbound, &shared.finish(answer, MAX_MESSAGE));
                active = Instant::now();
            }
            pushed = framing::push(&mut writer, &mut outbound), if unflushed || !outbound.is_empty() => {
                let Ok(pushed) = pushed else {
                    return;
                };
                unflushed = pushed == Pushed::Written;
                active = Instant::now();
            }
            read = reader.read_buf(&mut inbound), if reading && has_room => match read {
                Ok(0) => reading = false,
                Ok(_) => {}
                Err(_) => return,
            },
            _ = probe.tick(), if !(in_flight.is_empty() || reading && has_room) => {
                if let Some(Err(_)) = writer.flush().now_or_never() {
                    trace!("queries of a connection that was reset given up");
                    return;
                }
            }
            () = shared.stopping.cancelled(), if reading => reading = false,
            () = &mut expiry => {
                let waits_for_client = in_flight.is_empty() || !outbound.is_empty();
                if active + shared.idle_timeout() <= Instant::now() && waits_for_client {
                    trace!("idle connection closed");
                    if !outbound.is_empty() {
                        return;
                    }
                    break;
                }
                let next = (active + shared.idle_timeout()).max(Instant::now() + shared.idle_timeout() / 8);
                expiry.as_mut().reset(next);
            }
        }
    }
    let _ = writer.shutdown().await;
}

/// What becomes of a message.
enum Admitted {
    /// Its answer is there.
    Now(Answer),
    /// Its answer takes time.
    Later(Query<'static>, Missed, Permit),
    /// It has none.
    Never,
}

fn admit(shared: &Shared, client: IpAddr, message: &[u8], channel: Channel) -> Admitted {
    shared.meter.query(Transport::Tcp);
    let query = match shared.take(message) {
        Taken::Query(query) => query,
        Taken::Answered(answer) => return Admitted::Now(answer),
        Taken::Ignored => return Admitted::Never,
    };
    let missed = match shared.resolver.answer_now(&query) {
        AtOnce::Answer(answer) => {
            return Admitted::Now(channel.padded(answer, query.is_padded()));
        }
        AtOnce::Nothing(missed) => missed,
    };
    match shared.admission.permit(client) {
        Some(permit) => Admitted::Later(query.into_owned(), missed, permit),
        None => Admitted::Now(Answer::error(
            &query,
            Rcode::SERVFAIL,
            ExtendedError {
                code: ExtendedError::OTHER,
                text: "too many queries in flight",
            },
        )),
    }
}

async fn answer(
    shared: &Shared,
    query: Query<'static>,
    missed: Missed,
    permit: Permit,
    channel: Channel,
) -> Answer {
    // Its time runs from when it is looked at: a client that does not take its replies holds it up itself.
    let arrived = Instant::now();
    let answer = shared.answer(&query, missed, Transport::Tcp, arrived).await;
    drop(permit);
    channel.padded(answer, query.is_padded())
}
