//! Exchanges over a byte stream: one connection kept open, many queries in flight, replies in any order (RFC 7766).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadHalf, WriteHalf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use tracing::trace;

use crate::dns::counters::Counter;
use crate::dns::framing::{self, Pushed};
use crate::dns::query::Request;
use crate::dns::reply::{Reply, Unusable};
use crate::dns::wire::Header;

/// Queries that wait for replies on one connection; the IDs must stay sparse enough to be found at random.
const MAX_IN_FLIGHT: usize = 4096;

/// Queries that wait for their turn to be written.
const QUEUE: usize = 256;

/// Octets written ahead of what the upstream takes.
const MAX_OUTBOUND: usize = 64 * 1024;

/// Messages in a row that are no reply to any query, until the connection is taken for a broken one.
const MAX_UNUSABLE: u32 = 1024;

/// How often a query is given to another connection because the one it was given to ended before it was sent.
const UNSENT_MAX: usize = 4;

/// What a connection's life depends on.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// How long connecting may take.
    connect: Duration,
    /// How long a connection is kept that carries nothing.
    idle: Duration,
    /// How long an upstream may bring no reply while it owes some; the connection is then taken for dead, whatever else
    /// comes on it.
    silence: Duration,
}

const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(2),
    idle: Duration::from_secs(10),
    silence: Duration::from_secs(3),
};

/// Opens connections to one upstream.
pub(super) trait Dial: Send + Sync + 'static {
    /// What queries and replies travel on.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// Opens a connection.
    fn dial(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;

    /// The mark that connections opened at this moment carry; one that carries another is not used any more.
    fn mark(&self) -> u32;
}

/// An upstream that is asked over connections.
pub(super) struct StreamUpstream<D> {
    dial: Arc<D>,
    patience: Patience,
    /// The connection in use, and the mark it was opened with.
    current: Mutex<Option<(u32, mpsc::Sender<Ask>)>>,
}

impl<D: Dial> StreamUpstream<D> {
    pub(super) fn new(dial: D) -> Self {
        Self::with_patience(dial, PATIENCE)
    }

    /// Asks and waits for the reply; where the connection dies before it came, once more on another connection.
    ///
    /// A query that was never sent has not been asked: it goes to another connection and may still be asked twice.
    pub(super) async fn exchange(
        &self,
        request: &Request,
        ignored: &Arc<Counter>,
    ) -> io::Result<Reply> {
        let (mut sent, mut unsent) = (0, 0);
        while sent < 2 && unsent < UNSENT_MAX {
            match self.ask(request, ignored).await {
                Ok(reply) => return Ok(reply),
                Err(Lost::Sent) => sent += 1,
                Err(Lost::Unsent) => unsent += 1,
                Err(Lost::Unconnected(error)) => return Err(error),
            }
        }
        Err(io::Error::new(
            io::ErrorKind::ConnectionAborted,
            "connection closed by the upstream before it answered",
        ))
    }

    fn with_patience(dial: D, patience: Patience) -> Self {
        Self {
            dial: Arc::new(dial),
            patience,
            current: Mutex::new(None),
        }
    }

    async fn ask(&self, request: &Request, ignored: &Arc<Counter>) -> Result<Reply, Lost> {
        let (reply, replied) = oneshot::channel();
        let ask = Ask {
            request: request.clone(),
            reply,
        };
        if self.connection(ignored).send(ask).await.is_err() {
            return Err(Lost::Unsent);
        }
        replied.await.unwrap_or(Err(Lost::Sent))
    }

    fn connection(&self, ignored: &Arc<Counter>) -> mpsc::Sender<Ask> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let mark = self.dial.mark();
        if let Some((opened_with, asks)) = current.as_ref()
            && *opened_with == mark
            && !asks.is_closed()
        {
            return asks.clone();
        }
        let (sender, asks) = mpsc::channel(QUEUE);
        let dial = Arc::clone(&self.dial);
        tokio::spawn(connect(dial, self.patience, asks, Arc::clone(ignored)));
        *current = Some((mark, sender.clone()));
        sender
    }
}

/// A query on its way to a connection.
struct Ask {
    request: Request,
    reply: oneshot::Sender<Result<Reply, Lost>>,
}

/// Why a query has no reply.
#[derive(Debug)]
enum Lost {
    /// The connection ended after the query was sent, wholly or in part.
    Sent,
    /// The connection ended before.
    Unsent,
    /// There was no connection.
    Unconnected(io::Error),
}

/// Opens a connection and serves it; every query that waits learns why it could not be opened.
async fn connect<D: Dial>(
    dial: Arc<D>,
    patience: Patience,
    mut asks: mpsc::Receiver<Ask>,
    ignored: Arc<Counter>,
) {
    let outcome = timeout(patience.connect, dial.dial())
        .await
        .unwrap_or_else(|_| {
            Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "connecting took too long",
            ))
        });
    match outcome {
        Ok(stream) => {
            let mut connection = Connection::new(stream, patience, ignored);
            let end = connection.serve(&mut asks).await;
            trace!(?end, "connection to an upstream ended");
            // Whoever is told of the end asks again at once, and must not find this connection.
            asks.close();
            connection.abandon();
            while let Some(ask) = asks.recv().await {
                let _ = ask.reply.send(Err(Lost::Unsent));
            }
        }
        Err(error) => {
            asks.close();
            while let Some(ask) = asks.recv().await {
                let error = io::Error::new(error.kind(), error.to_string());
                let _ = ask.reply.send(Err(Lost::Unconnected(error)));
            }
        }
    }
}

/// Why a connection ended.
#[derive(Debug)]
enum End {
    Idle,
    Silent,
    Abandoned,
    Closed,
    Framing,
    Unusable,
    #[expect(dead_code, reason = "read by the trace line that prints it")]
    Failed(io::Error),
}

/// A query that was put into `outbound` when `starts_at` octets had been before.
struct Waiting {
    ask: Ask,
    starts_at: u64,
}

struct Connection<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    patience: Patience,
    ignored: Arc<Counter>,
    waiting: HashMap<u16, Waiting>,
    inbound: BytesMut,
    outbound: BytesMut,
    /// Octets that were ever put into `outbound`.
    enqueued: u64,
    /// When the upstream last brought a reply, or last owed nothing.
    heard: Instant,
    /// Messages since then that were no reply to any query.
    unusable: u32,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    fn new(stream: S, patience: Patience, ignored: Arc<Counter>) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        Self {
            reader,
            writer,
            patience,
            ignored,
            waiting: HashMap::new(),
            inbound: BytesMut::new(),
            outbound: BytesMut::new(),
            enqueued: 0,
            heard: Instant::now(),
            unusable: 0,
        }
    }

    /// Carries queries and replies until the connection ends; queries may still wait then.
    async fn serve(&mut self, asks: &mut mpsc::Receiver<Ask>) -> End {
        match self.carry(asks).await {
            Ok(end) => end,
            Err(error) => End::Failed(error),
        }
    }

    async fn carry(&mut self, asks: &mut mpsc::Receiver<Ask>) -> io::Result<End> {
        let mut expiry = std::pin::pin!(sleep_until(self.expiry()));
        let mut unflushed = false;
        loop {
            if self.expiry() < expiry.deadline() {
                expiry.as_mut().reset(self.expiry());
            }
            framing::reserve(&mut self.inbound);
            let accepting =
                self.waiting.len() < MAX_IN_FLIGHT && self.outbound.len() < MAX_OUTBOUND;
            tokio::select! {
                ask = asks.recv(), if accepting => {
                    let Some(ask) = ask else {
                        return Ok(End::Abandoned);
                    };
                    self.enqueue(ask);
                    while self.waiting.len() < MAX_IN_FLIGHT && self.outbound.len() < MAX_OUTBOUND {
                        let Ok(ask) = asks.try_recv() else {
                            break;
                        };
                        self.enqueue(ask);
                    }
                }
                read = self.reader.read_buf(&mut self.inbound) => {
                    if read? == 0 {
                        return Ok(End::Closed);
                    }
                    while let Some(message) = framing::take(&mut self.inbound) {
                        let Some(header) = Header::parse(&message) else {
                            return Ok(End::Framing);
                        };
                        self.deliver(header.id, &message);
                    }
                    if self.unusable > MAX_UNUSABLE {
                        return Ok(End::Unusable);
                    }
                }
                pushed = framing::push(&mut self.writer, &mut self.outbound), if unflushed || !self.outbound.is_empty() => {
                    unflushed = pushed? == Pushed::Written;
                }
                () = &mut expiry => {
                    if self.expiry() <= Instant::now() {
                        let is_idle = self.waiting.is_empty();
                        return Ok(if is_idle { End::Idle } else { End::Silent });
                    }
                    self.waiting.retain(|_, waiting| !waiting.ask.reply.is_closed());
                    expiry.as_mut().reset(self.expiry());
                }
            }
        }
    }

    fn enqueue(&mut self, ask: Ask) {
        if ask.reply.is_closed() {
            return;
        }
        if self.waiting.is_empty() {
            self.heard = Instant::now();
        }
        let mut id = rand::random();
        while self.waiting.contains_key(&id) {
            id = rand::random();
        }
        let starts_at = self.enqueued;
        let before = self.outbound.len();
        framing::put(&mut self.outbound, &ask.request.with_id(id));
        self.enqueued += (self.outbound.len() - before) as u64;
        self.waiting.insert(id, Waiting { ask, starts_at });
    }

    /// Tells queries that still wait what has become of them.
    fn abandon(self) {
        let written = self.enqueued - self.outbound.len() as u64;
        for Waiting { ask, starts_at } in self.waiting.into_values() {
            let was_sent = starts_at < written;
            let _ = ask
                .reply
                .send(Err(if was_sent { Lost::Sent } else { Lost::Unsent }));
        }
    }

    fn deliver(&mut self, id: u16, message: &[u8]) {
        let Entry::Occupied(waiting) = self.waiting.entry(id) else {
            trace!("reply to no query ignored");
            self.ignored.add();
            self.unusable += 1;
            return;
        };
        match Reply::parse(message, id, &waiting.get().ask.request) {
            Ok(reply) => {
                let _ = waiting.remove().ask.reply.send(Ok(reply));
                self.heard = Instant::now();
                self.unusable = 0;
            }
            Err(reason) => self.ignore(reason),
        }
    }

    fn ignore(&mut self, reason: Unusable) {
        trace!(%reason, "reply of an upstream ignored");
        self.ignored.add();
        self.unusable += 1;
    }

    fn expiry(&self) -> Instant {
        let patience = if self.waiting.is_empty() {
            self.patience.idle
        } else {
            self.patience.silence
        };
        self.heard + patience
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

    use tokio::io::{AsyncWriteExt, DuplexStream};

    use super::*;
    use crate::dns::query::Query;
    use crate::dns::testing;

    #[tokio::test]
    async fn replies_in_any_order_reach_the_queries_they_belong_to() {
        let (upstream, mut far_ends) = upstream(PATIENCE);
        let (first, second) = (request("first.example."), request("second.example."));
        let far_end = async {
            let mut stream = far_ends.recv().await.unwrap();
            let one = testing::read_framed(&mut stream).await.unwrap();
            let other = testing::read_framed(&mut stream).await.unwrap();
            testing::write_framed(&mut stream, &testing::reply_of(&other, 1)).await;
            testing::write_framed(&mut stream, &testing::reply_of(&one, 1)).await;
            stream
        };
        let ignored = Arc::default();
        let (one, other, _stream) = tokio::join!(
            upstream.exchange(&first, &ignored),
            upstream.exchange(&second, &ignored),
            far_end
        );
        assert_eq!(one.unwrap().rcode().0, 0);
        assert_eq!(other.unwrap().rcode().0, 0);
        assert_eq!(upstream.dial.dialled.load(Ordering::Relaxed), 1);
        assert_eq!(ignored.value(), 0);
    }

    #[tokio::test]
    async fn replies_to_no_query_and_to_another_question_are_ignored() {
        let (upstream, mut far_ends) = upstream(PATIENCE);
        let ignored = Arc::default();
        let request = request("asked.example.");
        let far_end = async {
            let mut stream = far_ends.recv().await.unwrap();
            let query = testing::read_framed(&mut stream).await.unwrap();
            let right = testing::reply_of(&query, 1);
            let mut wrong_id = right.clone();
            wrong_id[0] ^= 0x55;
            let mut wrong_question = testing::reply_of(&testing::query("other.example.", "A"), 1);
            wrong_question[..2].copy_from_slice(&right[..2]);
            for message in [&wrong_id, &wrong_question, &right] {
                testing::write_framed(&mut stream, message).await;
            }
            stream
        };
        let (reply, _stream) = tokio::join!(upstream.exchange(&request, &ignored), far_end);
        assert!(reply.is_ok());
        assert_eq!(ignored.value(), 2);
    }

    #[tokio::test]
    async fn a_query_on_a_connection_that_dies_is_asked_once_more_on_another() {
        let (upstream, mut far_ends) = upstream(PATIENCE);
        let far_end = async {
            let mut stream = far_ends.recv().await.unwrap();
            testing::read_framed(&mut stream).await.unwrap();
            drop(stream);
            answer_one(far_ends.recv().await.unwrap()).await
        };
        let ignored = Arc::default();
        let request = request("again.example.");
        let (reply, _stream) = tokio::join!(upstream.exchange(&request, &ignored), far_end);
        assert!(reply.is_ok());
        assert_eq!(upstream.dial.dialled.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_second_death_is_an_error() {
        let (upstream, mut far_ends) = upstream(PATIENCE);
        let far_end = async {
            for _ in 0..2 {
                let mut stream = far_ends.recv().await.unwrap();
                testing::read_framed(&mut stream).await.unwrap();
            }
        };
        let ignored = Arc::default();
        let request = request("dead.example.");
        let (reply, ()) = tokio::join!(upstream.exchange(&request, &ignored), far_end);
        assert_eq!(reply.unwrap_err().kind(), io::ErrorKind::ConnectionAborted);
    }

    #[tokio::test]
    async fn a_silent_connection_is_replaced() {
        let patience = Patience {
            silence: Duration::from_millis(50),
            ..PATIENCE
        };
        let (upstream, mut far_ends) = upstream(patience);
        let far_end = async {
            let silent = far_ends.recv().await.unwrap();
            (silent, answer_one(far_ends.recv().await.unwrap()).await)
        };
        let ignored = Arc::default();
        let request = request("silent.example.");
        let (reply, _streams) = tokio::join!(upstream.exchange(&request, &ignored), far_end);
        assert!(reply.is_ok());
    }

    #[tokio::test]
    async fn a_connection_that_brings_octets_but_no_reply_is_replaced() {
        let patience = Patience {
            silence: Duration::from_millis(50),
            ..PATIENCE
        };
        let (upstream, mut far_ends) = upstream(patience);
        let far_end = async {
            let mut dripping = far_ends.recv().await.unwrap();
            testing::read_framed(&mut dripping).await.unwrap();
            // The length of a message that never becomes whole.
            while dripping.write_all(&[0xff]).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            answer_one(far_ends.recv().await.unwrap()).await
        };
        let ignored = Arc::default();
        let request = request("dripping.example.");
        let (reply, _stream) = tokio::join!(upstream.exchange(&request, &ignored), far_end);
        assert!(reply.is_ok());
        assert_eq!(upstream.dial.dialled.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn a_connection_that_brings_only_what_nobody_asked_for_is_closed() {
        let (upstream, mut far_ends) = upstream(PATIENCE);
        let ignored = Arc::default();
        let request = request("asked.example.");
        let far_end = async { answer_one(far_ends.recv().await.unwrap()).await };
        let (reply, mut stream) = tokio::join!(upstream.exchange(&request, &ignored), far_end);
        let unasked = testing::reply_of(&testing::query("unasked.example.", "A"), 1);
        let mut framed = BytesMut::new();
        framing::put(&mut framed, &unasked);
        while stream.write_all(&framed).await.is_ok() {}
        assert!(reply.is_ok());
        assert!(ignored.value() > u64::from(MAX_UNUSABLE));
    }

    #[tokio::test]
    async fn a_connection_with_another_mark_is_not_used_any_more() {
        let (upstream, mut far_ends) = upstream(PATIENCE);
        let request = request("marked.example.");
        let ignored = Arc::default();
        let mut open = Vec::new();
        for mark in [1, 2] {
            upstream.dial.mark.store(mark, Ordering::Relaxed);
            let far_end = async { answer_one(far_ends.recv().await.unwrap()).await };
            let (asked, stream) = tokio::join!(upstream.exchange(&request, &ignored), far_end);
            asked.unwrap();
            open.push(stream);
        }
        let (asked, _stream) = tokio::join!(
            upstream.exchange(&request, &ignored),
            answer_one(open.remove(1))
        );
        asked.unwrap();
        assert_eq!(upstream.dial.dialled.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn an_idle_connection_is_closed() {
        let patience = Patience {
            idle: Duration::from_millis(20),
            ..PATIENCE
        };
        let (upstream, mut far_ends) = upstream(patience);
        let far_end = async { answer_one(far_ends.recv().await.unwrap()).await };
        let ignored = Arc::default();
        let request = request("idle.example.");
        let (reply, mut stream) = tokio::join!(upstream.exchange(&request, &ignored), far_end);
        assert!(reply.is_ok());
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_framing_error_closes_the_connection() {
        let (upstream, mut far_ends) = upstream(PATIENCE);
        let far_end = async {
            let mut stream = far_ends.recv().await.unwrap();
            testing::read_framed(&mut stream).await.unwrap();
            stream.write_all(&[0, 1, 0]).await.unwrap();
            answer_one(far_ends.recv().await.unwrap()).await
        };
        let ignored = Arc::default();
        let request = request("framing.example.");
        let (reply, _stream) = tokio::join!(upstream.exchange(&request, &ignored), far_end);
        assert!(reply.is_ok());
        assert_eq!(upstream.dial.dialled.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn many_queries_share_one_connection() {
        let (upstream, mut far_ends) = upstream(PATIENCE);
        let ignored = Arc::default();
        let requests: Vec<Request> = (0..300)
            .map(|number| request(&format!("n{number}.example.")))
            .collect();
        let exchanges = requests
            .iter()
            .map(|request| upstream.exchange(request, &ignored));
        let far_end = async {
            let mut stream = far_ends.recv().await.unwrap();
            let mut replies = Vec::new();
            for _ in 0..300 {
                let query = testing::read_framed(&mut stream).await.unwrap();
                replies.push(testing::reply_of(&query, 1));
            }
            for reply in replies.iter().rev() {
                testing::write_framed(&mut stream, reply).await;
            }
            stream
        };
        let (replies, _stream) = tokio::join!(futures_util::future::join_all(exchanges), far_end);
        assert!(replies.into_iter().all(|reply| reply.is_ok()));
        assert_eq!(upstream.dial.dialled.load(Ordering::Relaxed), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn queries_in_flight_on_a_connection_that_dies_are_all_answered_on_the_next() {
        const QUERIES: usize = 250;
        for _ in 0..40 {
            let (upstream, mut far_ends) = upstream(PATIENCE);
            let upstream = Arc::new(upstream);
            let ignored = Arc::default();
            let exchanges: Vec<_> = (0..QUERIES)
                .map(|number| {
                    let request = request(&format!("n{number}.example."));
                    let (upstream, ignored) = (Arc::clone(&upstream), Arc::clone(&ignored));
                    tokio::spawn(async move { upstream.exchange(&request, &ignored).await })
                })
                .collect();
            let mut dying = far_ends.recv().await.unwrap();
            for _ in 0..QUERIES {
                testing::read_framed(&mut dying).await.unwrap();
            }
            drop(dying);
            let mut living = far_ends.recv().await.unwrap();
            let serve = tokio::spawn(async move {
                while let Some(query) = testing::read_framed(&mut living).await {
                    testing::write_framed(&mut living, &testing::reply_of(&query, 1)).await;
                }
            });
            for exchange in exchanges {
                assert!(exchange.await.unwrap().is_ok());
            }
            assert_eq!(upstream.dial.dialled.load(Ordering::Relaxed), 2);
            serve.abort();
        }
    }

    #[tokio::test]
    async fn a_query_that_was_not_sent_before_its_connection_died_can_still_be_asked_twice() {
        let (upstream, mut far_ends) = upstream(PATIENCE);
        // Fills what the first connection carries, so that the second query stays behind it.
        let mut long = testing::query("long.example.", "A");
        long[11] = 1;
        long.extend_from_slice(&[
            0, 0, 41, 2, 0, 0, 0, 0, 0, 0x07, 0xd4, 0xfd, 0xe9, 0x07, 0xd0,
        ]);
        long.resize(long.len() + 2000, 0);
        let long = Query::parse(&long).unwrap().request();
        let short = request("short.example.");
        let far_end = async {
            let first = far_ends.recv().await.unwrap();
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            drop(first);
            let mut second = far_ends.recv().await.unwrap();
            for _ in 0..2 {
                testing::read_framed(&mut second).await.unwrap();
            }
            drop(second);
            answer_one(far_ends.recv().await.unwrap()).await
        };
        let ignored = Arc::default();
        let (long, short, _stream) = tokio::join!(
            upstream.exchange(&long, &ignored),
            upstream.exchange(&short, &ignored),
            far_end
        );
        assert!(long.is_err());
        assert!(short.is_ok());
    }

    struct DuplexDial {
        far_ends: mpsc::UnboundedSender<DuplexStream>,
        dialled: AtomicUsize,
        mark: AtomicU32,
    }

    impl Dial for DuplexDial {
        type Stream = DuplexStream;

        async fn dial(&self) -> io::Result<DuplexStream> {
            self.dialled.fetch_add(1, Ordering::Relaxed);
            let (near_end, far_end) = tokio::io::duplex(1024);
            self.far_ends.send(far_end).map_err(io::Error::other)?;
            Ok(near_end)
        }

        fn mark(&self) -> u32 {
            self.mark.load(Ordering::Relaxed)
        }
    }

    fn upstream(
        patience: Patience,
    ) -> (
        StreamUpstream<DuplexDial>,
        mpsc::UnboundedReceiver<DuplexStream>,
    ) {
        let (sender, far_ends) = mpsc::unbounded_channel();
        let dial = DuplexDial {
            far_ends: sender,
            dialled: AtomicUsize::new(0),
            mark: AtomicU32::new(0),
        };
        (StreamUpstream::with_patience(dial, patience), far_ends)
    }

    fn request(name: &str) -> Request {
        let query = testing::query(name, "A");
        Query::parse(&query).unwrap().request()
    }

    async fn answer_one(mut stream: DuplexStream) -> DuplexStream {
        let query = testing::read_framed(&mut stream).await.unwrap();
        testing::write_framed(&mut stream, &testing::reply_of(&query, 1)).await;
        stream
    }
}
