//! Exchanges on connections that give each a stream of its own (HTTP/2, HTTP/3, QUIC): one connection kept, and replaced
//! when it dies.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::trace;

use crate::dns::counters::Counter;
use crate::dns::query::Request;
use crate::dns::reply::Reply;

/// The ID of queries whose stream tells replies apart (RFC 8484 §4.1, RFC 9250 §4.2.1).
const ID: u16 = 0;

/// How often a query is asked, each time on another connection.
const TRIES: usize = 2;

/// What a connection's life depends on.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// How long opening a connection may take.
    open: Duration,
    /// How long a connection is kept that carries nothing.
    idle: Duration,
    /// How long a connection may bring nothing while it owes replies; it is then taken for dead.
    silence: Duration,
}

const PATIENCE: Patience = Patience {
    open: Duration::from_secs(2),
    idle: Duration::from_secs(10),
    silence: Duration::from_secs(2),
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

    /// Waits until the connection has ended.
    fn ended(&self) -> impl Future<Output = ()> + Send;

    /// Ends the connection.
    fn close(&self);
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
        let query = Bytes::from(request.with_id(ID));
        let mut failure = io::Error::from(io::ErrorKind::ConnectionAborted);
        for _ in 0..TRIES {
            let live = self.live().await?;
            match live.exchange(query.clone(), self.patience.silence).await {
                Ok(message) => {
                    return Reply::parse(&message, ID, request).map_err(|reason| {
                        trace!(%reason, "reply of an upstream ignored");
                        ignored.add();
                        io::Error::new(io::ErrorKind::InvalidData, reason)
                    });
                }
                Err(Broken::Exchange(error)) => return Err(error),
                Err(Broken::Connection(error)) => {
                    trace!(%error, "connection to an upstream ended");
                    live.end();
                    failure = error;
                }
            }
        }
        Err(failure)
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
    async fn exchange(self: &Arc<Self>, query: Bytes, silence: Duration) -> Result<Bytes, Broken> {
        let _in_flight = InFlight::new(self);
        let mut exchange = std::pin::pin!(self.session.exchange(query));
        let asked = Instant::now();
        loop {
            let heard = self.lock().heard.max(asked);
            tokio::select! {
                biased;
                outcome = &mut exchange => {
                    if outcome.is_ok() {
                        self.lock().heard = Instant::now();
                    }
                    return outcome;
                }
                () = sleep_until(heard + silence) => {
                    if self.lock().heard <= heard {
                        return Err(Broken::Connection(io::Error::new(
                            io::ErrorKind::TimedOut,
                            "the connection brings nothing any more",
                        )));
                    }
                }
            }
        }
    }

    fn end(&self) {
        self.ended.store(true, Ordering::Release);
        self.session.close();
    }
}

impl<S> Live<S> {
    fn lock(&self) -> MutexGuard<'_, Use> {
        self.use_.lock().unwrap_or_else(PoisonError::into_inner)
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
    use std::sync::atomic::AtomicUsize;

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

    enum Answer {
        Reply(Vec<u8>),
        Break,
        Silence,
    }

    type Script = fn(usize, &[u8]) -> Answer;

    struct ScriptedOpen {
        script: Script,
        opened: AtomicUsize,
        refuse: bool,
    }

    struct ScriptedSession {
        script: Script,
        number: usize,
        ended: CancellationToken,
    }

    impl ScriptedOpen {
        fn new(script: Script) -> Self {
            Self {
                script,
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
                Answer::Break => Err(Broken::Connection(io::ErrorKind::BrokenPipe.into())),
                Answer::Silence => std::future::pending().await,
            }
        }

        async fn ended(&self) {
            self.ended.cancelled().await;
        }

        fn close(&self) {
            self.ended.cancel();
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
