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

/// What a connection's life depends on.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// How long connecting may take.
    connect: Duration,
    /// How long a connection is kept that carries nothing.
    idle: Duration,
    /// How long an upstream may be silent while it owes replies; the connection is then taken for dead.
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
}

/// An upstream that is asked over connections.
pub(super) struct StreamUpstream<D> {
    dial: Arc<D>,
    patience: Patience,
    current: Mutex<Option<mpsc::Sender<Ask>>>,
}

impl<D: Dial> StreamUpstream<D> {
    pub(super) fn new(dial: D) -> Self {
        Self::with_patience(dial, PATIENCE)
    }

    /// Asks and waits for the reply; where the connection dies before it came, once more on another connection.
    pub(super) async fn exchange(
        &self,
        request: &Request,
        ignored: &Arc<Counter>,
    ) -> io::Result<Reply> {
        let Some(outcome) = self.ask(request, ignored).await else {
            return self.ask(request, ignored).await.unwrap_or_else(|| {
                Err(io::Error::new(
                    io::ErrorKind::ConnectionAborted,
                    "connection closed by the upstream before it answered",
                ))
            });
        };
        outcome
    }

    fn with_patience(dial: D, patience: Patience) -> Self {
        Self {
            dial: Arc::new(dial),
            patience,
            current: Mutex::new(None),
        }
    }

    /// Asks once; `None` when the connection was there and died.
    async fn ask(&self, request: &Request, ignored: &Arc<Counter>) -> Option<io::Result<Reply>> {
        let (reply, replied) = oneshot::channel();
        let ask = Ask {
            request: request.clone(),
            reply,
        };
        self.connection(ignored).send(ask).await.ok()?;
        replied.await.ok()
    }

    fn connection(&self, ignored: &Arc<Counter>) -> mpsc::Sender<Ask> {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(asks) = current.as_ref().filter(|asks| !asks.is_closed()) {
            return asks.clone();
        }
        let (sender, asks) = mpsc::channel(QUEUE);
        let dial = Arc::clone(&self.dial);
        tokio::spawn(connect(dial, self.patience, asks, Arc::clone(ignored)));
        *current = Some(sender.clone());
        sender
    }
}

/// A query on its way to a connection.
struct Ask {
    request: Request,
    reply: oneshot::Sender<io::Result<Reply>>,
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
        }
        Err(error) => {
            asks.close();
            while let Some(ask) = asks.recv().await {
                let error = io::Error::new(error.kind(), error.to_string());
                let _ = ask.reply.send(Err(error));
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
    #[expect(dead_code, reason = "read by the trace line that prints it")]
    Failed(io::Error),
}

struct Connection<S> {
    reader: ReadHalf<S>,
    writer: WriteHalf<S>,
    patience: Patience,
    ignored: Arc<Counter>,
    waiting: HashMap<u16, Ask>,
    inbound: BytesMut,
    outbound: BytesMut,
    /// When the upstream was last heard, or last owed nothing.
    heard: Instant,
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
            heard: Instant::now(),
        }
    }

    /// Carries queries and replies until the connection ends; queries that still wait are dropped with it.
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
                    self.heard = Instant::now();
                    while let Some(message) = framing::take(&mut self.inbound) {
                        let Some(header) = Header::parse(&message) else {
                            return Ok(End::Framing);
                        };
                        self.deliver(header.id, &message);
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
                    self.waiting.retain(|_, ask| !ask.reply.is_closed());
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
        framing::put(&mut self.outbound, &ask.request.with_id(id));
        self.waiting.insert(id, ask);
    }

    fn deliver(&mut self, id: u16, message: &[u8]) {
        let Entry::Occupied(waiting) = self.waiting.entry(id) else {
            trace!("reply to no query ignored");
            self.ignored.add();
            return;
        };
        match Reply::parse(message, id, &waiting.get().request) {
            Ok(reply) => {
                let _ = waiting.remove().reply.send(Ok(reply));
            }
            Err(reason) => self.ignore(reason),
        }
    }

    fn ignore(&self, reason: Unusable) {
        trace!(%reason, "reply of an upstream ignored");
        self.ignored.add();
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
    use std::sync::atomic::{AtomicUsize, Ordering};

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

    struct DuplexDial {
        far_ends: mpsc::UnboundedSender<DuplexStream>,
        dialled: AtomicUsize,
    }

    impl Dial for DuplexDial {
        type Stream = DuplexStream;

        async fn dial(&self) -> io::Result<DuplexStream> {
            self.dialled.fetch_add(1, Ordering::Relaxed);
            let (near_end, far_end) = tokio::io::duplex(4096);
            self.far_ends.send(far_end).map_err(io::Error::other)?;
            Ok(near_end)
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
