//! Exchanges on connections that give each a stream of its own (HTTP/2, HTTP/3, QUIC): one connection kept, and replaced
//! when it dies.

use std::future;
use std::io;
use std::mem;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::{BoxFuture, Either, select};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::trace;

use crate::dns::counters::Counter;
use crate::dns::query::Request;
use crate::dns::reply::Reply;

/// The ID of queries whose stream tells replies apart (RFC 8484 §4.1, RFC 9250 §4.2.1).
const ID: u16 = 0;

/// For how many round trips nothing at all arrives on a connection, though something was sent, until another is tried
/// beside it: the far end acknowledges what it is not ready to answer.
const DEAF_ROUND_TRIPS: u32 = 4;

/// Exchanges on one connection that nobody waits for any more, and that are still listened for.
const MAX_FORSAKEN: usize = 1024;

/// What a connection's life depends on.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// How long opening a connection may take.
    open: Duration,
    /// How long a connection is kept that carries nothing.
    idle: Duration,
    /// How long a connection may bring nothing while it owes replies, or acknowledgements where the transport has them; it
    /// is then taken for dead.
    silence: Duration,
    /// For how long at least nothing at all arrives on a connection before another is tried beside it; a far end that is
    /// busy takes as long now and then.
    deaf: Duration,
}

const PATIENCE: Patience = Patience {
    open: Duration::from_secs(2),
    idle: Duration::from_secs(10),
    silence: Duration::from_secs(2),
    deaf: Duration::from_millis(500),
};

/// Opens connections to one upstream.
pub(super) trait Open: Send + Sync + 'static {
    /// A connection.
    type Session: Session;

    /// Opens a connection and shakes hands.
    fn open(&self) -> impl Future<Output = io::Result<Self::Session>> + Send;

    /// The mark that connections opened at this moment carry; one that carries another is not used any more.
    fn mark(&self) -> u32;
}

/// An open connection.
pub(super) trait Session: Send + Sync + 'static {
    /// Sends one query on a stream of its own, and gives the reply.
    fn exchange(&self, query: Bytes) -> impl Future<Output = Result<Bytes, Broken>> + Send;

    /// What has come and gone on the connection, where the transport tells.
    fn traffic(&self) -> Option<Traffic> {
        None
    }

    /// Waits until the connection has ended.
    fn ended(&self) -> impl Future<Output = ()> + Send;

    /// Ends the connection.
    fn close(&self);
}

/// What a connection has carried at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Traffic {
    /// What was sent that the far end has to acknowledge.
    pub(super) sent: u64,
    /// Datagrams that came, acknowledgements included.
    pub(super) received: u64,
    /// How long the way there and back takes.
    pub(super) round_trip: Duration,
}

/// What is broken when an exchange fails.
#[derive(Debug)]
pub(super) enum Broken {
    /// The connection, with all it carries.
    Connection(io::Error),
    /// This exchange alone.
    Exchange(io::Error),
}

/// An upstream that is asked over sessions.
pub(super) struct SessionUpstream<O: Open> {
    open: Arc<O>,
    patience: Patience,
    /// The connection in use, and the mark it was opened with.
    current: Mutex<Option<(u32, Watched<O::Session>)>>,
}

impl<O: Open> SessionUpstream<O> {
    pub(super) fn new(open: O) -> Self {
        Self {
            open: Arc::new(open),
            patience: PATIENCE,
            current: Mutex::new(None),
        }
    }

    /// Asks and waits for the reply; where the connection dies before it came, once more on another connection.
    pub(super) async fn exchange(&self, request: &Request, ignored: &Counter) -> io::Result<Reply> {
        let message = self.ask(Bytes::from(request.with_id(ID))).await?;
        Reply::parse(&message, ID, request).map_err(|reason| {
            trace!(%reason, "reply of an upstream ignored");
            ignored.add();
            io::Error::new(io::ErrorKind::InvalidData, reason)
        })
    }

    /// The reply to `query`. While the connection brings nothing at all, another one is tried beside it, which later queries
    /// take as well; what comes first counts.
    async fn ask(&self, query: Bytes) -> io::Result<Bytes> {
        let live = self.live().await?;
        let before = live.session.traffic();
        let first = std::pin::pin!(live.exchange(query.clone(), self.patience.silence));
        let deaf = std::pin::pin!(live.goes_deaf(before, self.patience.deaf));
        let outcome = match select(first, deaf).await {
            Either::Left((Err(Broken::Connection(error)), _)) => {
                trace!(%error, "connection to an upstream ended");
                live.end();
                Box::pin(self.ask_anew(query)).await
            }
            Either::Left((outcome, _)) => outcome,
            Either::Right(((), first)) => {
                trace!("connection to an upstream brings nothing");
                live.leave();
                match select(first, Box::pin(self.ask_anew(query))).await {
                    Either::Left((Ok(message), _)) | Either::Right((Ok(message), _)) => Ok(message),
                    Either::Left((Err(_), second)) => second.await,
                    Either::Right((Err(_), first)) => first.await,
                }
            }
        };
        outcome.map_err(|broken| match broken {
            Broken::Connection(error) | Broken::Exchange(error) => error,
        })
    }

    /// The same on another connection, for the last time.
    async fn ask_anew(&self, query: Bytes) -> Result<Bytes, Broken> {
        let live = self.live().await.map_err(Broken::Connection)?;
        let outcome = live.exchange(query, self.patience.silence).await;
        if matches!(outcome, Err(Broken::Connection(_))) {
            live.end();
        }
        outcome
    }

    /// The connection there is, or a new one; all who wait for one wait for the same.
    async fn live(&self) -> io::Result<Arc<Live<O::Session>>> {
        let mut state = self.state();
        let settled = state.wait_for(|state| !matches!(state, State::Opening));
        match settled.await.as_deref() {
            Ok(State::Open(live)) => Ok(Arc::clone(live)),
            Ok(State::Failed(kind, reason)) => Err(io::Error::new(*kind, reason.as_str())),
            Ok(State::Opening) | Err(_) => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    fn state(&self) -> Watched<O::Session> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = self.open.mark();
        if let Some((opened_with, state)) = current.as_ref()
            && *opened_with == mark
            && state.borrow().is_usable()
        {
            return state.clone();
        }
        let (sender, state) = watch::channel(State::Opening);
        tokio::spawn(open(Arc::clone(&self.open), self.patience, sender));
        *current = Some((mark, state.clone()));
        state
    }
}

/// A connection as it is opened, used and ended.
type Watched<S> = watch::Receiver<State<S>>;

/// How it stands with the connection.
enum State<S> {
    Opening,
    Open(Arc<Live<S>>),
    Failed(io::ErrorKind, String),
}

impl<S> State<S> {
    fn is_usable(&self) -> bool {
        match self {
            Self::Opening => true,
            Self::Open(live) => !live.ended.load(Ordering::Acquire),
            Self::Failed(..) => false,
        }
    }
}

/// Opens a connection, and keeps it until it ends or nobody has used it for long.
async fn open<O: Open>(open: Arc<O>, patience: Patience, state: watch::Sender<State<O::Session>>) {
    let opened = timeout(patience.open, open.open())
        .await
        .unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "connecting took too long",
            ))
        });
    let live = match opened {
        Ok(session) => Arc::new(Live {
            session,
            ended: AtomicBool::new(false),
            use_: Mutex::new(Use {
                in_flight: 0,
                heard: Instant::now(),
            }),
        }),
        Err(error) => {
            state.send_replace(State::Failed(error.kind(), error.to_string()));
            return;
        }
    };
    state.send_replace(State::Open(Arc::clone(&live)));
    loop {
        let expiry = live.lock().heard + patience.idle;
        tokio::select! {
            () = live.session.ended() => break,
            () = sleep_until(expiry) => {}
        }
        let mut used = live.lock();
        if used.in_flight > 0 {
            used.heard = Instant::now();
        } else if used.heard + patience.idle <= Instant::now() {
            break;
        }
    }
    live.end();
}

/// A connection and how it is used.
struct Live<S> {
    session: S,
    ended: AtomicBool,
    use_: Mutex<Use>,
}

struct Use {
    in_flight: usize,
    /// When the connection last brought a reply, or was last taken into use.
    heard: Instant,
}

impl<S: Session> Live<S> {
    /// Asks and waits for the reply, for as long as anything is brought. Where nobody waits any more, the reply is still
    /// listened for: that it comes says that the connection lives, and that none comes says that it is dead.
    async fn exchange(self: &Arc<Self>, query: Bytes, silence: Duration) -> Result<Bytes, Broken> {
        let exchange = Box::pin(Arc::clone(self).carry(query, silence));
        let mut pending = Pending {
            exchange: Some(exchange),
            live: Arc::clone(self),
            patience: silence + silence / 4,
        };
        let Some(exchange) = &mut pending.exchange else {
            return Err(Broken::Exchange(io::ErrorKind::Other.into()));
        };
        let outcome = exchange.await;
        pending.exchange = None;
        outcome
    }

    async fn carry(self: Arc<Self>, query: Bytes, silence: Duration) -> Result<Bytes, Broken> {
        let _in_flight = InFlight::new(&self);
        let before = self.session.traffic();
        tokio::select! {
            biased;
            outcome = self.session.exchange(query) => {
                if !matches!(outcome, Err(Broken::Connection(_))) {
                    self.lock().heard = Instant::now();
                }
                outcome
            }
            () = self.dies(before, silence) => Err(Broken::Connection(io::Error::new(
                io::ErrorKind::TimedOut,
                "the connection brings nothing any more",
            ))),
        }
    }

    /// Waits until nothing has come for `silence`: nothing at all though the far end should have given a sign of life since
    /// the connection had carried `before`, or no reply where the transport does not tell.
    async fn dies(&self, before: Option<Traffic>, silence: Duration) {
        if before.is_some() {
            return self.goes_deaf(before, silence).await;
        }
        let asked = Instant::now();
        loop {
            let heard = self.lock().heard.max(asked);
            sleep_until(heard + silence).await;
            if self.lock().heard <= heard {
                return;
            }
        }
    }

    /// Waits until the far end gives no sign of life for as long as `least` at least, though it should, since the connection
    /// had carried `before`.
    ///
    /// What it has had less than half of that time to acknowledge is not held against it.
    async fn goes_deaf(&self, before: Option<Traffic>, least: Duration) {
        let mut hearing = before.map(Hearing::from);
        while let Some(heard) = &mut hearing {
            sleep(least.max(heard.earlier.round_trip * DEAF_ROUND_TRIPS) / 2).await;
            let Some(now) = self.session.traffic() else {
                break;
            };
            if heard.is_deaf(now) {
                return;
            }
        }
        future::pending::<()>().await;
    }

    fn end(&self) {
        self.leave();
        self.session.close();
    }
}

impl<S> Live<S> {
    /// Gives it no more queries; those on their way go on.
    fn leave(&self) {
        self.ended.store(true, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Use> {
        self.use_.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a connection had carried at the last look, and at the one before that.
struct Hearing {
    earlier: Traffic,
    last: Option<Traffic>,
}

impl Hearing {
    /// Whether nothing has come since the look before the last one, though something had been sent by the last one.
    fn is_deaf(&mut self, now: Traffic) -> bool {
        let Some(last) = self.last.replace(now) else {
            return false;
        };
        let earlier = mem::replace(&mut self.earlier, last);
        last.sent > earlier.sent && now.received == earlier.received
    }
}

impl From<Traffic> for Hearing {
    fn from(earlier: Traffic) -> Self {
        Self {
            earlier,
            last: None,
        }
    }
}

/// An exchange that goes on for a while, if it is not over, when this is dropped.
struct Pending<S: Session> {
    exchange: Option<BoxFuture<'static, Result<Bytes, Broken>>>,
    live: Arc<Live<S>>,
    /// How long it goes on: until then a connection that is dead is known to be.
    patience: Duration,
}

impl<S: Session> Drop for Pending<S> {
    fn drop(&mut self) {
        let Some(exchange) = self.exchange.take() else {
            return;
        };
        let (live, patience) = (Arc::clone(&self.live), self.patience);
        if live.lock().in_flight > MAX_FORSAKEN {
            return;
        }
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                if let Ok(Err(Broken::Connection(error))) = timeout(patience, exchange).await {
                    trace!(%error, "connection to an upstream ended");
                    live.end();
                }
            });
        }
    }
}

/// An exchange that counts as in flight until this is dropped.
struct InFlight<S>(Arc<Live<S>>);

impl<S> InFlight<S> {
    fn new(live: &Arc<Live<S>>) -> Self {
        let mut used = live.lock();
        if used.in_flight == 0 {
            used.heard = Instant::now();
        }
        used.in_flight += 1;
        drop(used);
        Self(Arc::clone(live))
    }
}

impl<S> Drop for InFlight<S> {
    fn drop(&mut self) {
        self.0.lock().in_flight -= 1;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize};

    use futures_util::future::join_all;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::dns::query::Query;
    use crate::dns::testing;

    #[tokio::test]
    async fn queries_that_come_at_once_share_one_connection() {
        let upstream = upstream(|_, query| Answer::Reply(testing::reply_of(query, 1)));
        let requests: Vec<_> = (0..50)
            .map(|number| request(&format!("n{number}.example.")))
            .collect();
        let ignored = Counter::default();
        let exchanges = requests
            .iter()
            .map(|request| upstream.exchange(request, &ignored));
        let replies = join_all(exchanges).await;
        assert!(replies.into_iter().all(|reply| reply.is_ok()));
        assert_eq!(upstream.open.opened(), 1);
    }

    #[tokio::test]
    async fn a_query_on_a_connection_that_breaks_is_asked_once_more_on_another() {
        let upstream = upstream(|connection, query| match connection {
            0 => Answer::Break,
            _ => Answer::Reply(testing::reply_of(query, 1)),
        });
        let reply = ask(&upstream, "again.example.").await;
        assert!(reply.is_ok());
        assert_eq!(upstream.open.opened(), 2);
    }

    #[tokio::test]
    async fn a_second_break_is_an_error() {
        let upstream = upstream(|_, _| Answer::Break);
        let reply = ask(&upstream, "broken.example.").await;
        assert_eq!(reply.unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(upstream.open.opened(), 2);
    }

    #[tokio::test]
    async fn a_connection_that_brings_nothing_is_replaced() {
        let mut upstream = upstream(|connection, query| match connection {
            0 => Answer::Silence,
            _ => Answer::Reply(testing::reply_of(query, 1)),
        });
        upstream.patience.silence = Duration::from_millis(50);
        let reply = ask(&upstream, "silent.example.").await;
        assert!(reply.is_ok());
        assert_eq!(upstream.open.opened(), 2);
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed_and_the_next_query_opens_another() {
        let mut upstream = upstream(|_, query| Answer::Reply(testing::reply_of(query, 1)));
        upstream.patience.idle = Duration::from_millis(20);
        ask(&upstream, "first.example.").await.unwrap();
        let first = upstream.live().await.unwrap();
        first.session.ended.cancelled().await;
        ask(&upstream, "second.example.").await.unwrap();
        assert_eq!(upstream.open.opened(), 2);
    }

    #[tokio::test]
    async fn a_connection_that_the_upstream_ended_is_not_used_again() {
        let upstream = upstream(|_, query| Answer::Reply(testing::reply_of(query, 1)));
        ask(&upstream, "first.example.").await.unwrap();
        let first = upstream.live().await.unwrap();
        first.session.close();
        while !first.ended.load(Ordering::Relaxed) {
            tokio::task::yield_now().await;
        }
        ask(&upstream, "second.example.").await.unwrap();
        assert_eq!(upstream.open.opened(), 2);
    }

    #[tokio::test]
    async fn why_a_connection_cannot_be_opened_is_told_to_all_who_wait_and_it_is_tried_again() {
        let mut upstream = upstream(|_, query| Answer::Reply(testing::reply_of(query, 1)));
        upstream.open = Arc::new(ScriptedOpen {
            refuse: true,
            ..ScriptedOpen::new(|_, _| Answer::Break)
        });
        let one = ask(&upstream, "one.example.");
        let other = ask(&upstream, "other.example.");
        let (one, other) = tokio::join!(one, other);
        for error in [one.unwrap_err(), other.unwrap_err()] {
            assert_eq!(error.to_string(), "refused for a reason");
        }
        assert_eq!(upstream.open.opened(), 1);
        ask(&upstream, "third.example.").await.unwrap_err();
        assert_eq!(upstream.open.opened(), 2);
    }

    #[tokio::test]
    async fn a_reply_to_another_question_is_ignored_and_an_error() {
        let upstream = upstream(|_, _| {
            let mut other = testing::query("other.example.", "A");
            other[..2].copy_from_slice(&[0, 0]);
            Answer::Reply(testing::reply_of(&other, 1))
        });
        let ignored = Counter::default();
        let request = request("asked.example.");
        let reply = upstream.exchange(&request, &ignored);
        assert_eq!(reply.await.unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(ignored.value(), 1);
    }

    #[tokio::test]
    async fn beside_a_connection_on_which_nothing_arrives_another_is_tried_and_then_used() {
        let mut upstream = upstream(|connection, query| match connection {
            0 => Answer::Silence,
            _ => Answer::Reply(testing::reply_of(query, 1)),
        });
        upstream.patience.silence = Duration::from_mins(1);
        upstream.patience.deaf = Duration::from_millis(10);
        Arc::get_mut(&mut upstream.open).unwrap().traffic = |looks| Some(traffic(looks, 1));
        let first = upstream.live().await.unwrap();
        assert!(ask(&upstream, "deaf.example.").await.is_ok());
        assert!(ask(&upstream, "heard.example.").await.is_ok());
        assert_eq!(upstream.open.opened(), 2);
        assert!(!first.session.ended.is_cancelled(), "it may answer yet");
    }

    #[tokio::test]
    async fn a_connection_on_which_acknowledgements_arrive_is_waited_for() {
        let mut upstream = upstream(|_, query| Answer::Late(testing::reply_of(query, 1)));
        upstream.patience.deaf = Duration::from_millis(5);
        Arc::get_mut(&mut upstream.open).unwrap().traffic = |looks| Some(traffic(looks, looks));
        assert!(ask(&upstream, "slow.example.").await.is_ok());
        assert_eq!(upstream.open.opened(), 1);
    }

    #[test]
    fn a_connection_is_deaf_only_where_what_was_sent_could_be_acknowledged_and_was_not() {
        for (looks, deaf_at) in [
            // What was sent, and what had come, each half window.
            (&[(0, 0), (1, 0), (1, 0)][..], Some(2)),
            (&[(0, 0), (0, 0), (1, 0), (1, 1), (1, 1)], None),
            (&[(0, 0), (0, 0), (1, 0), (1, 0)], Some(3)),
            (&[(0, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3)], None),
            (&[(1, 1), (1, 1), (1, 1), (1, 1)], None),
            (&[(0, 0), (1, 1), (2, 1), (3, 1)], Some(3)),
        ] {
            let mut looks_then = looks
                .iter()
                .map(|&(sent, received)| traffic(sent, received));
            let mut hearing = Hearing::from(looks_then.next().unwrap());
            let found = looks_then.position(|now| hearing.is_deaf(now));
            assert_eq!(found.map(|it| it + 1), deaf_at, "{looks:?}");
        }
    }

    #[tokio::test]
    async fn a_query_that_nobody_waits_for_any_more_leaves_a_connection_that_lives_alone() {
        let mut upstream = upstream(|_, query| {
            if query.windows(4).any(|it| it == b"slow") {
                return Answer::Silence;
            }
            Answer::Reply(testing::reply_of(query, 1))
        });
        upstream.patience.silence = Duration::from_millis(20);
        Arc::get_mut(&mut upstream.open).unwrap().traffic =
            |looks| Some(traffic(looks.min(2), looks.min(2)));
        let hasty = timeout(Duration::from_millis(1), ask(&upstream, "slow.example.")).await;
        assert!(hasty.is_err());
        let live = upstream.live().await.unwrap();
        while live.lock().in_flight > 0 {
            sleep(Duration::from_millis(1)).await;
        }
        assert!(ask(&upstream, "next.example.").await.is_ok());
        assert_eq!(upstream.open.opened(), 1);
    }

    #[tokio::test]
    async fn a_query_that_nobody_waits_for_any_more_still_finds_out_that_its_connection_is_dead() {
        let mut upstream = upstream(|connection, query| match connection {
            0 => Answer::Silence,
            _ => Answer::Reply(testing::reply_of(query, 1)),
        });
        upstream.patience.silence = Duration::from_millis(50);
        let first = upstream.live().await.unwrap();
        let hasty = timeout(Duration::from_millis(1), ask(&upstream, "hasty.example.")).await;
        assert!(hasty.is_err());
        first.session.ended.cancelled().await;
        assert!(ask(&upstream, "next.example.").await.is_ok());
        assert_eq!(upstream.open.opened(), 2);
    }

    enum Answer {
        Reply(Vec<u8>),
        Late(Vec<u8>),
        Break,
        Silence,
    }

    type Script = fn(usize, &[u8]) -> Answer;

    /// What a connection has carried when it is looked at for so many times.
    type Meter = fn(u64) -> Option<Traffic>;

    struct ScriptedOpen {
        script: Script,
        traffic: Meter,
        opened: AtomicUsize,
        refuse: bool,
    }

    struct ScriptedSession {
        script: Script,
        traffic: Meter,
        looks: AtomicU64,
        number: usize,
        ended: CancellationToken,
    }

    impl ScriptedOpen {
        fn new(script: Script) -> Self {
            Self {
                script,
                traffic: |_| None,
                opened: AtomicUsize::new(0),
                refuse: false,
            }
        }

        fn opened(&self) -> usize {
            self.opened.load(Ordering::Relaxed)
        }
    }

    impl Open for ScriptedOpen {
        type Session = ScriptedSession;

        async fn open(&self) -> io::Result<ScriptedSession> {
            tokio::task::yield_now().await;
            let number = self.opened.fetch_add(1, Ordering::Relaxed);
            if self.refuse {
                return Err(io::Error::other("refused for a reason"));
            }
            Ok(ScriptedSession {
                script: self.script,
                traffic: self.traffic,
                looks: AtomicU64::new(0),
                number,
                ended: CancellationToken::new(),
            })
        }

        fn mark(&self) -> u32 {
            0
        }
    }

    impl Session for ScriptedSession {
        async fn exchange(&self, query: Bytes) -> Result<Bytes, Broken> {
            match (self.script)(self.number, &query) {
                Answer::Reply(reply) => Ok(reply.into()),
                Answer::Late(reply) => {
                    sleep(Duration::from_millis(50)).await;
                    Ok(reply.into())
                }
                Answer::Break => Err(Broken::Connection(io::ErrorKind::BrokenPipe.into())),
                Answer::Silence => future::pending().await,
            }
        }

        fn traffic(&self) -> Option<Traffic> {
            (self.traffic)(self.looks.fetch_add(1, Ordering::Relaxed))
        }

        async fn ended(&self) {
            self.ended.cancelled().await;
        }

        fn close(&self) {
            self.ended.cancel();
        }
    }

    fn traffic(sent: u64, received: u64) -> Traffic {
        Traffic {
            sent,
            received,
            round_trip: Duration::from_millis(1),
        }
    }

    fn upstream(script: Script) -> SessionUpstream<ScriptedOpen> {
        SessionUpstream::new(ScriptedOpen::new(script))
    }

    fn request(name: &str) -> Request {
        let query = testing::query(name, "A");
        Query::parse(&query).unwrap().request()
    }

    async fn ask(upstream: &SessionUpstream<ScriptedOpen>, name: &str) -> io::Result<Reply> {
        let ignored = Counter::default();
        upstream.exchange(&request(name), &ignored).await
    }
}
