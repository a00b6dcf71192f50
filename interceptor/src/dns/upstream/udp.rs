//! Exchanges over UDP: a few sockets at a time, each for a few queries, and patience with replies that are not ours.
//!
//! An attacker who forges a reply must hit the port and the ID of a query in flight (RFC 5452 §4). A socket of its own
//! for every query would make that as hard as can be, at the price of four system calls. Here up to [`SOCKETS_MAX`]
//! sockets are in use at a time, each on a random port that the kernel chose; queries that come together, up to
//! [`BURST_MAX`], take one of them at random and leave it in one system call, each with an ID that is random and unlike
//! those in flight beside it. What differs from a socket of its own is bounded:
//! - a port is used for [`QUERIES_MAX`] queries at most and given none after [`LIFETIME`], so whoever finds it out
//!   learns little, for a short time;
//! - as long as fewer sockets than that are in use, as at the pace of people, every query gets a new one;
//! - no more than [`QUERIES_MAX`] IDs are ever in flight on a port, so a forged message that hits the port has one
//!   chance in five hundred at best, and then must match the question as well.

use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use rand::RngExt;
use tokio::io::Interest;
use tokio::net::UdpSocket;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};
use tracing::trace;

use super::cookies::{Cookies, Worth};
use crate::bypass::{Bypass, BypassSocket};
use crate::dns::counters::Counter;
use crate::dns::query::Request;
use crate::dns::reply::Reply;
use crate::dns::wire::Header;
use crate::net::batch::{self, Buffers};

/// Sockets that take queries at a time.
const SOCKETS_MAX: usize = 16;

/// Queries that one socket is given in its life.
const QUERIES_MAX: usize = 128;

/// Queries that wait to be sent together.
const BURST_MAX: usize = 16;

/// How long a socket is given queries.
const LIFETIME: Duration = Duration::from_secs(2);

/// The longest reply in octets that is read; ours are asked to be shorter, but not every upstream listens.
const MAX_REPLY: usize = 4096;

/// An upstream that is asked by datagrams.
pub(super) struct UdpUpstream {
    remote: SocketAddr,
    bypass: Bypass,
    cookies: Cookies,
    lanes: Mutex<Lanes>,
    buffers: Arc<Mutex<Buffers>>,
}

/// Sockets that take queries, and some that have ceased to; their keepers hold them open, not this.
#[derive(Default)]
struct Lanes {
    all: Vec<Weak<Lane>>,
    /// The one that was given the last query.
    latest: Weak<Lane>,
}

impl UdpUpstream {
    pub(super) fn new(remote: SocketAddr, bypass: Bypass) -> Self {
        Self {
            remote,
            bypass,
            cookies: Cookies::new(),
            lanes: Mutex::default(),
            buffers: Arc::new(Mutex::new(Buffers::new(MAX_REPLY))),
        }
    }

    /// Asks with a cookie where the upstream takes one, and waits for the reply; once more where the cookie is not what
    /// the upstream wants.
    pub(super) async fn exchange(
        &self,
        request: &Request,
        ignored: &Arc<Counter>,
    ) -> io::Result<Reply> {
        let Some(with_cookie) = self.cookies.add(request) else {
            return self.ask(request, ignored).await;
        };
        let reply = self.ask(&with_cookie, ignored).await?;
        if let Worth::Reply(reply) = self.cookies.judge(reply, false) {
            return Ok(reply);
        }
        Box::pin(self.ask_again(request, ignored)).await
    }

    async fn ask_again(&self, request: &Request, ignored: &Arc<Counter>) -> io::Result<Reply> {
        let Some(with_cookie) = self.cookies.add(request) else {
            return self.ask(request, ignored).await;
        };
        let reply = self.ask(&with_cookie, ignored).await?;
        match self.cookies.judge(reply, true) {
            Worth::Reply(reply) => Ok(reply),
            Worth::AskAgain => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Asks and waits for the one reply that matches (RFC 5452 §9); others count as `ignored` and end nothing.
    ///
    /// An error that the network reports ends every exchange on its socket: it does not say which of them it is about.
    async fn ask(&self, request: &Request, ignored: &Arc<Counter>) -> io::Result<Reply> {
        let exchange = self.begin(request, ignored).await?;
        let is_shared = exchange.is_shared;
        match exchange.await {
            Ok(reply) => Ok(reply),
            // What the kernel reports when something is sent is the fate of what was sent before.
            Err(lost) if is_shared && !lost.was_sent => {
                let exchange = Box::pin(self.begin_alone(request, ignored)).await?;
                exchange.await.map_err(|lost| lost.error)
            }
            Err(lost) => Err(lost.error),
        }
    }

    /// Finds a socket and an ID for a query.
    async fn begin(&self, request: &Request, ignored: &Arc<Counter>) -> io::Result<Exchange> {
        if let Some(exchange) = self.begin_shared(request, SOCKETS_MAX) {
            return Ok(exchange);
        }
        let mut opening = Box::pin(self.begin_alone(request, ignored));
        if let Some(opened) = (&mut opening).now_or_never() {
            return opened;
        }
        // Where files are scarce, sharing is better than waiting.
        match self.begin_shared(request, 1) {
            Some(exchange) => Ok(exchange),
            None => opening.await,
        }
    }

    /// Begins on one of the sockets there are, if they are `enough`.
    fn begin_shared(&self, request: &Request, enough: usize) -> Option<Exchange> {
        let (mark, now) = (self.bypass.mark(), Instant::now());
        let mut lanes = self.lanes();
        if lanes.all.len() < enough {
            return None;
        }
        let latest = lanes.latest.upgrade();
        let joined = latest.filter(|lane| lane.has_a_burst_to_join());
        if let Some(exchange) = joined.and_then(|lane| lane.begin(request, mark, now)) {
            return Some(exchange);
        }
        while lanes.all.len() >= enough {
            let chosen = rand::rng().random_range(0..lanes.all.len());
            let lane = lanes.all.get(chosen)?.upgrade();
            let begun = lane.and_then(|lane| lane.begin(request, mark, now));
            if let Some(exchange) = begun {
                lanes.latest = Arc::downgrade(&exchange.lane);
                return Some(exchange);
            }
            lanes.all.swap_remove(chosen);
        }
        None
    }

    /// Begins on a new socket, which others share from here on.
    async fn begin_alone(&self, request: &Request, ignored: &Arc<Counter>) -> io::Result<Exchange> {
        let mark = self.bypass.mark();
        let socket = self.bypass.udp(self.remote).await?;
        let opened = Instant::now();
        let lane = Arc::new(Lane::new(socket, mark, opened));
        let exchange = lane
            .begin(request, mark, opened)
            .ok_or(io::ErrorKind::ConnectionAborted)?;
        self.lanes().all.push(Arc::downgrade(&lane));
        tokio::spawn(lane.keep(Arc::clone(ignored), Arc::clone(&self.buffers)));
        Ok(exchange)
    }

    fn lanes(&self) -> MutexGuard<'_, Lanes> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One socket with the queries that wait on it.
struct Lane {
    socket: BypassSocket,
    /// The bypass mark that the socket has.
    mark: u32,
    opened: Instant,
    state: Mutex<LaneState>,
    /// Tells the keeper that there is something to send, or that a lane that takes no more queries has none left.
    attention: Notify,
}

#[derive(Default)]
struct LaneState {
    waiting: Vec<Waiting>,
    /// Messages that are still to be sent, with their IDs.
    unsent: Vec<Message>,
    /// Queries it was ever given.
    given: usize,
    /// It takes no more.
    retired: bool,
}

/// A query in flight.
struct Waiting {
    id: u16,
    request: Request,
    outcome: Option<Result<Reply, Lost>>,
    waker: Option<Waker>,
}

/// A query's message as it is sent.
struct Message {
    id: u16,
    octets: Vec<u8>,
}

/// Why a query has no reply.
#[derive(Debug)]
struct Lost {
    error: io::Error,
    was_sent: bool,
}

impl Lane {
    fn new(socket: BypassSocket, mark: u32, opened: Instant) -> Self {
        Self {
            socket,
            mark,
            opened,
            state: Mutex::default(),
            attention: Notify::new(),
        }
    }

    /// Whether queries wait to be sent that another one could be sent with.
    fn has_a_burst_to_join(&self) -> bool {
        (1..BURST_MAX).contains(&self.state().unsent.len())
    }

    /// Gives a query its ID and has the keeper send it, unless the lane takes no more queries or has another mark than
    /// `mark`.
    fn begin(self: &Arc<Self>, request: &Request, mark: u32, now: Instant) -> Option<Exchange> {
        let mut state = self.state();
        if self.mark != mark || now >= self.opened + LIFETIME {
            self.retire(&mut state);
        }
        if state.retired {
            return None;
        }
        let id = state.fresh_id();
        state.waiting.push(Waiting {
            id,
            request: request.clone(),
            outcome: None,
            waker: None,
        });
        state.unsent.push(Message {
            id,
            octets: request.with_id(id),
        });
        if state.unsent.len() == 1 {
            self.attention.notify_one();
        }
        let is_shared = state.given > 0;
        state.given += 1;
        state.retired = state.given >= QUERIES_MAX;
        Some(Exchange {
            lane: Arc::clone(self),
            id,
            is_shared,
        })
    }

    /// Sends queries and reads replies until the lane takes no more queries and none waits.
    async fn keep(self: Arc<Self>, ignored: Arc<Counter>, buffers: Arc<Mutex<Buffers>>) {
        let mut retirement = pin!(sleep_until(self.opened + LIFETIME));
        while !self.state().is_done() {
            let is_full = self.flush();
            let mut interest = Interest::READABLE | Interest::ERROR;
            if is_full {
                interest |= Interest::WRITABLE;
            }
            tokio::select! {
                ready = self.socket.ready(interest) => {
                    let mut failure = ready.as_ref().err().map(copy);
                    if let Some(error) = self.receive(&buffers, &ignored) {
                        failure = Some(error);
                    }
                    if ready.is_ok_and(tokio::io::Ready::is_error) {
                        failure = failure.or_else(|| pending_error(&self.socket));
                    }
                    if let Some(error) = failure {
                        self.fail(&error);
                    }
                }
                () = self.attention.notified() => {}
                () = &mut retirement, if !self.state().retired => self.state().retired = true,
            }
        }
    }

    /// Sends what waits to be sent; tells whether the socket cannot take all of it now.
    fn flush(&self) -> bool {
        loop {
            let mut state = self.state();
            if state.unsent.is_empty() {
                return false;
            }
            let sent = match &*state.unsent {
                [message] => self.socket.try_send(&message.octets).map(|_| 1),
                messages => self
                    .socket
                    .try_io(Interest::WRITABLE, || batch::send(&*self.socket, messages)),
            };
            match sent {
                Ok(count) => drop(state.unsent.drain(..count)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                // A message that is too long is nobody else's fate.
                Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => {
                    let message = state.unsent.remove(0);
                    state.lose(message.id, error);
                }
                Err(error) => {
                    drop(state);
                    self.fail(&error);
                    return false;
                }
            }
        }
    }

    /// Reads what has arrived, and gives the error that the kernel reports before it.
    fn receive(&self, buffers: &Mutex<Buffers>, ignored: &Counter) -> Option<io::Error> {
        let mut failure = None;
        let mut buffers = buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut expected = self.state().waiting.len();
        loop {
            let received = self.socket.try_io(Interest::READABLE, || {
                let take = |message: &[u8]| self.deliver(message, ignored);
                if buffers.receive(&*self.socket, expected, take)? {
                    Ok(())
                } else {
                    // There was room for more: what comes from here on is told anew.
                    Err(io::ErrorKind::WouldBlock.into())
                }
            });
            match received {
                // More than were expected: who knows how many.
                Ok(()) => expected = usize::MAX,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return failure,
                // One error, and then what had arrived before it; more of them are more of the same.
                Err(error) => {
                    if failure.replace(error).is_some() {
                        return failure;
                    }
                }
            }
        }
    }

    fn deliver(&self, message: &[u8], ignored: &Counter) {
        let mut state = self.state();
        let id = Header::parse(message).map(|header| header.id);
        let waiting = state
            .waiting
            .iter_mut()
            .find(|waiting| Some(waiting.id) == id && waiting.outcome.is_none());
        let Some(waiting) = waiting else {
            trace!("datagram of an upstream answers no query");
            ignored.add();
            return;
        };
        match Reply::parse(message, waiting.id, &waiting.request) {
            Ok(reply) => waiting.end(Ok(reply)),
            Err(reason) => {
                trace!(%reason, "datagram of an upstream ignored");
                ignored.add();
            }
        }
    }

    /// Ends all queries that wait; the lane takes no others.
    fn fail(&self, error: &io::Error) {
        let mut state = self.state();
        let unsent = std::mem::take(&mut state.unsent);
        self.retire(&mut state);
        for waiting in &mut state.waiting {
            if waiting.outcome.is_none() {
                let was_sent = unsent.iter().all(|message| message.id != waiting.id);
                let error = copy(error);
                waiting.end(Err(Lost { error, was_sent }));
            }
        }
    }

    fn retire(&self, state: &mut LaneState) {
        state.retired = true;
        if state.is_done() {
            self.attention.notify_one();
        }
    }

    fn state(&self) -> MutexGuard<'_, LaneState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LaneState {
    fn is_done(&self) -> bool {
        self.retired && self.waiting.is_empty()
    }

    /// Ends the query with `id`, whose message could not be sent.
    fn lose(&mut self, id: u16, error: io::Error) {
        let waiting = self.waiting.iter_mut().find(|waiting| waiting.id == id);
        if let Some(waiting) = waiting {
            // As if it were on its way: on another socket it would be no shorter.
            let was_sent = true;
            waiting.end(Err(Lost { error, was_sent }));
        }
    }

    /// An ID that no query in flight here has.
    fn fresh_id(&self) -> u16 {
        loop {
            let id = rand::random();
            if self.waiting.iter().all(|waiting| waiting.id != id) {
                return id;
            }
        }
    }
}

impl Waiting {
    fn end(&mut self, outcome: Result<Reply, Lost>) {
        self.outcome = Some(outcome);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// A query's place on a lane, given up when it is dropped; completes with the reply.
struct Exchange {
    lane: Arc<Lane>,
    id: u16,
    /// Others have used the lane before.
    is_shared: bool,
}

impl Future for Exchange {
    type Output = Result<Reply, Lost>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.lane.state();
        let waiting = state
            .waiting
            .iter_mut()
            .find(|waiting| waiting.id == self.id);
        let Some(waiting) = waiting else {
            let error = io::ErrorKind::ConnectionAborted.into();
            let was_sent = true;
            return Poll::Ready(Err(Lost { error, was_sent }));
        };
        if let Some(outcome) = waiting.outcome.take() {
            return Poll::Ready(outcome);
        }
        match &mut waiting.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => waiting.waker = Some(cx.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let mut state = self.lane.state();
        if let Some(place) = state
            .waiting
            .iter()
            .position(|waiting| waiting.id == self.id)
        {
            state.waiting.swap_remove(place);
        }
        state.unsent.retain(|message| message.id != self.id);
        if state.is_done() {
            self.lane.attention.notify_one();
        }
    }
}

/// What an ICMP error did to the socket; tokio reports it as readiness, which lasts until it is found to be over.
fn pending_error(socket: &UdpSocket) -> Option<io::Error> {
    let pending = socket.try_io(Interest::ERROR, || match socket.take_error() {
        Ok(Some(error)) | Err(error) => Err(error),
        Ok(None) => Err::<(), _>(io::ErrorKind::WouldBlock.into()),
    });
    pending
        .err()
        .filter(|error| error.kind() != io::ErrorKind::WouldBlock)
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.octets
    }
}

/// The same error for one more query.
fn copy(error: &io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error.kind().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use futures_util::future::join_all;

    use super::*;
    use crate::dns::query::Query;
    use crate::dns::testing;

    #[tokio::test]
    async fn a_port_is_given_a_bounded_number_of_queries() {
        let far_end = far_end().await;
        let upstream = upstream(&far_end);
        let ignored = Arc::default();
        let mut queries_by_port: HashMap<u16, usize> = HashMap::new();
        for _ in 0..=SOCKETS_MAX * QUERIES_MAX {
            let request = request("port.example.");
            let answer = async {
                let (query, client) = receive(&far_end).await;
                answer(&far_end, &query, client).await;
                client.port()
            };
            let (reply, port) = tokio::join!(upstream.exchange(&request, &ignored), answer);
            reply.unwrap();
            *queries_by_port.entry(port).or_default() += 1;
        }
        assert!(queries_by_port.len() > SOCKETS_MAX, "{queries_by_port:?}");
        assert!(
            queries_by_port.values().all(|count| *count <= QUERIES_MAX),
            "{queries_by_port:?}"
        );
    }

    #[tokio::test]
    async fn queries_in_flight_on_one_port_have_different_ids_and_each_gets_its_own_reply() {
        const QUERIES: usize = 100;
        let far_end = far_end().await;
        let upstream = upstream(&far_end);
        let ignored = Arc::default();
        let requests: Vec<Request> = (0..QUERIES)
            .map(|number| request(&format!("q{number}.example.")))
            .collect();
        let exchanges = requests
            .iter()
            .map(|request| upstream.exchange(request, &ignored));
        let script = async {
            let mut asked = Vec::new();
            for _ in 0..QUERIES {
                asked.push(receive(&far_end).await);
            }
            for (query, client) in asked.iter().rev() {
                answer(&far_end, query, *client).await;
            }
            asked
        };
        let (replies, asked) = tokio::join!(join_all(exchanges), script);
        assert!(replies.iter().all(Result::is_ok));
        let places: HashSet<_> = asked
            .iter()
            .map(|(query, client)| ([query[0], query[1]], client.port()))
            .collect();
        assert_eq!(places.len(), QUERIES);
        let ports: HashSet<_> = asked.iter().map(|(_, client)| client.port()).collect();
        assert!(ports.len() <= SOCKETS_MAX);
    }

    #[tokio::test]
    async fn queries_that_come_together_leave_from_few_ports() {
        const QUERIES: usize = 4 * BURST_MAX;
        let far_end = far_end().await;
        let upstream = upstream(&far_end);
        let (ignored, request) = (Arc::default(), request("burst.example."));
        // Sockets there are; from here on they are shared.
        for _ in 0..SOCKETS_MAX {
            drop(upstream.begin_alone(&request, &ignored).await.unwrap());
        }
        let exchanges: Vec<_> = (0..QUERIES)
            .map(|_| upstream.begin_shared(&request, SOCKETS_MAX).unwrap())
            .collect();
        let lanes: HashSet<_> = exchanges.iter().map(|it| Arc::as_ptr(&it.lane)).collect();
        assert!(lanes.len() <= QUERIES / BURST_MAX);

        let script = async {
            for _ in 0..QUERIES {
                let (query, client) = receive(&far_end).await;
                answer(&far_end, &query, client).await;
            }
        };
        let (replies, ()) = tokio::join!(join_all(exchanges), script);
        assert!(replies.iter().all(Result::is_ok));
    }

    #[tokio::test]
    async fn a_query_that_is_given_up_before_it_is_sent_is_not_sent() {
        let far_end = far_end().await;
        let lane = lane(far_end.local_addr().unwrap()).await;
        let (one, _other) = (begin(&lane).unwrap(), begin(&lane).unwrap());
        drop(one);
        assert_eq!(lane.state().unsent.len(), 1);
    }

    #[tokio::test]
    async fn a_query_that_is_given_up_leaves_its_place() {
        let far_end = far_end().await;
        let lane = lane(far_end.local_addr().unwrap()).await;
        let exchange = begin(&lane).unwrap();
        assert_eq!(lane.state().waiting.len(), 1);
        drop(exchange);
        assert!(lane.state().waiting.is_empty());
    }

    #[tokio::test]
    async fn a_socket_of_another_mark_takes_no_more_queries_and_closes_with_its_last_one() {
        let far_end = far_end().await;
        let lane = lane(far_end.local_addr().unwrap()).await;
        let keeper = tokio::spawn(Arc::clone(&lane).keep(Arc::default(), buffers()));
        let request = request("lane.example.");
        let last = begin(&lane).unwrap();
        assert!(lane.begin(&request, 7, lane.opened).is_none());
        assert!(lane.begin(&request, 0, lane.opened).is_none());

        let (query, client) = receive(&far_end).await;
        answer(&far_end, &query, client).await;
        last.await.unwrap();
        keeper.await.unwrap();
    }

    #[tokio::test]
    async fn a_socket_that_takes_no_more_queries_is_closed_although_nothing_follows() {
        let far_end = far_end().await;
        let upstream = upstream(&far_end);
        let request = request("closed.example.");
        let ignored = Arc::default();
        let exchange = upstream.begin_alone(&request, &ignored).await.unwrap();
        let lane = upstream.lanes().all[0].clone();
        exchange.lane.retire(&mut exchange.lane.state());
        drop(exchange);
        while lane.strong_count() > 0 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_socket_past_its_lifetime_takes_no_more_queries() {
        let far_end = far_end().await;
        let lane = lane(far_end.local_addr().unwrap()).await;
        let request = request("old.example.");
        let just_before = lane.opened + LIFETIME - Duration::from_nanos(1);
        assert!(lane.begin(&request, 0, just_before).is_some());
        assert!(lane.begin(&request, 0, lane.opened + LIFETIME).is_none());
        Arc::clone(&lane).keep(Arc::default(), buffers()).await;
    }

    #[tokio::test]
    async fn a_closed_port_ends_all_queries_on_the_socket() {
        let lane = lane(SocketAddr::from(([127, 0, 0, 1], 1))).await;
        tokio::spawn(Arc::clone(&lane).keep(Arc::default(), buffers()));
        let (one, other) = (begin(&lane).unwrap(), begin(&lane).unwrap());
        assert!(one.await.is_err());
        assert!(other.await.is_err());
        assert!(begin(&lane).is_none());
    }

    #[tokio::test]
    async fn a_query_that_hears_of_anothers_failure_is_asked_on_a_new_socket() {
        let far_end = far_end().await;
        let upstream = upstream(&far_end);
        let ignored = Arc::default();
        let broken = lane(SocketAddr::from(([127, 0, 0, 1], 1))).await;
        let before = begin(&broken).unwrap();
        broken.socket.writable().await.unwrap();
        assert!(!broken.flush());
        tokio::spawn(Arc::clone(&broken).keep(Arc::default(), buffers()));
        upstream
            .lanes()
            .all
            .extend(std::iter::repeat_n(Arc::downgrade(&broken), SOCKETS_MAX));

        let request = request("after.example.");
        let script = async {
            let (query, client) = receive(&far_end).await;
            answer(&far_end, &query, client).await;
        };
        let (reply, ()) = tokio::join!(upstream.exchange(&request, &ignored), script);
        reply.unwrap();
        assert!(before.await.is_err());
    }

    async fn far_end() -> UdpSocket {
        UdpSocket::bind("127.0.0.1:0").await.unwrap()
    }

    fn upstream(far_end: &UdpSocket) -> UdpUpstream {
        UdpUpstream::new(far_end.local_addr().unwrap(), Bypass::new(0, None))
    }

    async fn lane(remote: SocketAddr) -> Arc<Lane> {
        let socket = Bypass::new(0, None).udp(remote).await.unwrap();
        Arc::new(Lane::new(socket, 0, Instant::now()))
    }

    fn buffers() -> Arc<Mutex<Buffers>> {
        Arc::new(Mutex::new(Buffers::new(MAX_REPLY)))
    }

    fn begin(lane: &Arc<Lane>) -> Option<Exchange> {
        lane.begin(&request("lane.example."), 0, lane.opened)
    }

    fn request(name: &str) -> Request {
        let query = testing::query(name, "A");
        Query::parse(&query).unwrap().request()
    }

    async fn receive(far_end: &UdpSocket) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; 512];
        let (length, client) = far_end.recv_from(&mut buffer).await.unwrap();
        buffer.truncate(length);
        (buffer, client)
    }

    async fn answer(far_end: &UdpSocket, query: &[u8], client: SocketAddr) {
        let reply = testing::reply_of(query, 1);
        far_end.send_to(&reply, client).await.unwrap();
    }
}
