//! A connection to the store, beside the tunnel: what is asked of it, and what it tells by itself.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, ErrorKind, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo,
    RedisError, RedisResult, Value, cmd, pipe,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::config::{Place, SharedCacheConfig};
use super::sentinel::{Named, Watchers};
use super::value::MOST_OCTETS;
use crate::bypass::Bypass;
use crate::dns::upstream::{EncryptedUrl, SecureDial, first_address};

/// Octets that may come without ending a reply. It is more than all replies that can be waited for have.
const MOST_UNREAD: usize = 16 << 20;

/// Requests that wait for their turn to be written.
const QUEUE: usize = 256;

/// Flushes that wait to be followed; with more, the connection is given up and everything is dropped.
const NEWS: usize = 256;

/// How long what was sent may stay unacknowledged before the kernel gives the connection up (tcp(7)).
const ACKNOWLEDGE_PATIENCE: Duration = Duration::from_secs(5);

/// The error of a command for strings where something else is.
const WRONG_TYPE: &str = "WRONGTYPE";

/// PTTL's reply where a key has no time to live.
const KEPT_FOR_EVER: i64 = -1;

/// Opens connections to a store.
pub(super) struct Dial {
    way: Way,
    info: RedisConnectionInfo,
    bypass: Bypass,
}

enum Way {
    Plain(EncryptedUrl),
    Tls(SecureDial),
    Unix(std::path::PathBuf),
    Sentinels(Watchers),
}

/// A connection that has introduced itself.
pub(super) struct Link {
    connection: MultiplexedConnection,
    unread: Arc<AtomicUsize>,
    /// The mark that it carries.
    pub(super) mark: u32,
    /// The master, where a sentinel has named it.
    pub(super) master: Option<Named>,
    _driver: AbortOnDropHandle<()>,
}

/// What a store tells by itself.
#[derive(Debug)]
pub(super) enum News {
    /// Somebody has published this.
    Told(Vec<u8>),
    /// The connection is no more.
    Lost,
}

/// Why the store did not do what it was asked to.
#[derive(Debug)]
pub(super) enum Trouble {
    /// What it has there is no value of ours.
    WrongType,
    /// It takes no changes; another may be the master.
    ReadOnly,
    /// It does not know whom it speaks with.
    WantsPassword,
    /// Anything else.
    Failed(String),
}

impl Dial {
    pub(super) fn new(config: &SharedCacheConfig, bypass: Bypass) -> Self {
        let url = &config.store;
        let bypass = match &url.place {
            Place::Plain(server) | Place::Tls(server) if config.bypass && !is_local(server) => {
                bypass
            }
            Place::Sentinels(_) if config.bypass => bypass,
            _ => Bypass::new(0, None),
        };
        let mut info = RedisConnectionInfo::default()
            .set_protocol(ProtocolVersion::RESP3)
            .set_db(url.database.into())
            .set_lib_name("interceptor", env!("CARGO_PKG_VERSION"));
        let stranger = info.clone().set_db(0);
        if let Some(user) = &url.user {
            info = info.set_username(user);
        }
        let own = url.password.as_ref();
        let password = own.or(config.password.as_ref().map(|file| &file.password));
        if let Some(password) = password {
            info = info.set_password(&password.0);
        }
        let way = match &url.place {
            Place::Plain(server) => Way::Plain(server.clone()),
            Place::Tls(server) => Way::Tls(SecureDial::new(server.clone(), bypass.clone())),
            Place::Unix(path) => Way::Unix(path.clone()),
            Place::Sentinels(sentinels) => {
                let known = password.map(|_| info.clone().set_db(0));
                Way::Sentinels(Watchers::new(sentinels.clone(), stranger, known))
            }
        };
        Self { way, info, bypass }
    }

    /// The mark that connections opened at this moment carry.
    pub(super) fn mark(&self) -> u32 {
        self.bypass.mark()
    }

    /// Connects, introduces itself and listens at `channel`. Can be cancelled.
    pub(super) async fn open(
        &self,
        channel: &str,
    ) -> Result<(Link, mpsc::Receiver<News>), Trouble> {
        let mark = self.mark();
        let master = match &self.way {
            Way::Sentinels(watchers) => Some(watchers.master(&self.bypass).await?),
            Way::Plain(_) | Way::Tls(_) | Way::Unix(_) => None,
        };
        let stream = self.stream(master).await;
        let stream = stream.map_err(|error| {
            Trouble::Failed(match master {
                Some(Named { place, .. }) => format!("the master at {place}: {error}"),
                None => error.to_string(),
            })
        })?;
        let unread = Arc::new(AtomicUsize::new(0));
        let stream = Metered::new(stream, Arc::clone(&unread));
        let (teller, news) = mpsc::channel(NEWS);
        let teller = Mutex::new(Some(teller));
        let config = AsyncConnectionConfig::new()
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE)
            .set_push_sender(move |push: PushInfo| tell(&teller, push));
        let opening = MultiplexedConnection::new_with_config(&self.info, stream, config);
        let (connection, driver) = opening.await?;
        let mut link = Link {
            connection,
            unread,
            mark,
            master,
            _driver: AbortOnDropHandle::new(tokio::spawn(driver)),
        };
        if let Some(Named { place, .. }) = master
            && !link.is_master().await?
        {
            return Err(Trouble::Failed(format!(
                "sentinels say that the master is at {place}, but that is a replica"
            )));
        }
        link.connection.subscribe(channel).await?;
        Ok((link, news))
    }

    /// Notes that `link` is of use, so that the sentinel that led there is asked first the next time.
    pub(super) fn trust(&self, link: &Link) {
        if let (Way::Sentinels(watchers), Some(named)) = (&self.way, link.master) {
            watchers.trust(named);
        }
    }

    /// A connection to the store; to the `master` where sentinels have named it.
    async fn stream(&self, master: Option<Named>) -> io::Result<Box<dyn Stream>> {
        match (&self.way, master) {
            (Way::Plain(server), _) => plain(server, &self.bypass).await,
            (Way::Tls(dial), _) => Ok(Box::new(dial.dial().await?)),
            (Way::Unix(path), _) => Ok(Box::new(UnixStream::connect(path).await?)),
            (Way::Sentinels(watchers), Some(named)) => {
                watchers.reach(named.place, &self.bypass).await
            }
            (Way::Sentinels(_), None) => Err(io::ErrorKind::AddrNotAvailable.into()),
        }
    }
}

/// A connection to a server with or without TLS, beside the tunnel unless it is this host's own.
pub(super) async fn reach(
    server: EncryptedUrl,
    is_tls: bool,
    bypass: &Bypass,
) -> io::Result<Box<dyn Stream>> {
    let bypass = if is_local(&server) {
        Bypass::new(0, None)
    } else {
        bypass.clone()
    };
    if is_tls {
        return Ok(Box::new(SecureDial::new(server, bypass).dial().await?));
    }
    plain(&server, &bypass).await
}

async fn plain(server: &EncryptedUrl, bypass: &Bypass) -> io::Result<Box<dyn Stream>> {
    let tcp = |remote| async move {
        let tcp = bypass.tcp(remote).await?;
        socket2::SockRef::from(&tcp).set_tcp_user_timeout(Some(ACKNOWLEDGE_PATIENCE))?;
        Ok(tcp)
    };
    Ok(Box::new(first_address(server.addresses(), tcp).await?))
}

impl Link {
    /// Where the master is, where a sentinel has named it.
    pub(super) fn place(&self) -> Option<SocketAddr> {
        self.master.map(|named| named.place)
    }

    /// What is kept under each of `names`, and for how many more milliseconds: -2 where there is nothing, -1 where it is
    /// kept for ever or no string. A value that is too long is one octet longer than it can be.
    ///
    /// The time is asked for first: where the value is replaced in between, the new one seems older than it is.
    pub(super) async fn values<N: AsRef<[u8]>>(
        &self,
        names: &[N],
    ) -> Result<Vec<(i64, Vec<u8>)>, Trouble> {
        let mut request = pipe();
        request.ignore_errors();
        for name in names {
            let name = name.as_ref();
            request.cmd("PTTL").arg(name);
            request.cmd("GETRANGE").arg(name).arg(0).arg(MOST_OCTETS);
        }
        let mut connection = self.connection.clone();
        let replies = self.read(request.query_async::<Vec<Value>>(&mut connection));
        let replies = replies.await?;
        let (pairs, _) = replies.as_chunks::<2>();
        pairs
            .iter()
            .map(|[remaining, value]| match (remaining, value) {
                (Value::Int(remaining), Value::BulkString(value)) => {
                    Ok((*remaining, value.clone()))
                }
                (_, Value::ServerError(error)) if error.code() == WRONG_TYPE => {
                    Ok((KEPT_FOR_EVER, Vec::new()))
                }
                (Value::ServerError(error), _) | (_, Value::ServerError(error)) => {
                    Err(RedisError::from(error.clone()).into())
                }
                _ => Err(Trouble::Failed("its reply has another form".to_owned())),
            })
            .collect()
    }

    /// Keeps values under names for so many milliseconds; tells of each whether it was taken.
    pub(super) async fn keep(
        &self,
        values: &[(Vec<u8>, Vec<u8>, u64)],
    ) -> Result<Vec<Result<(), Trouble>>, Trouble> {
        let mut request = pipe();
        request.ignore_errors();
        for (name, value, remaining) in values {
            request
                .cmd("SET")
                .arg(name)
                .arg(value)
                .arg("PX")
                .arg(*remaining);
        }
        let mut connection = self.connection.clone();
        let replies = self.read(request.query_async::<Vec<Value>>(&mut connection));
        let replies = replies.await?.into_iter();
        Ok(replies
            .map(|reply| match reply {
                Value::ServerError(error) => Err(RedisError::from(error).into()),
                _ => Ok(()),
            })
            .collect())
    }

    /// The number under `name`; nothing where there is none, or something else.
    pub(super) async fn number(&self, name: &str) -> Result<Option<u64>, Trouble> {
        let mut request = cmd("GETRANGE");
        request.arg(name).arg(0).arg(20);
        let mut connection = self.connection.clone();
        match self
            .read(request.query_async::<Vec<u8>>(&mut connection))
            .await
        {
            Ok(digits) => Ok(std::str::from_utf8(&digits)
                .ok()
                .and_then(|digits| digits.parse().ok())),
            Err(Trouble::WrongType) => Ok(None),
            Err(trouble) => Err(trouble),
        }
    }

    /// Puts `number` under `name`.
    pub(super) async fn set_number(&self, name: &str, number: u64) -> Result<(), Trouble> {
        let mut request = cmd("SET");
        request.arg(name).arg(number);
        self.read(request.query_async::<()>(&mut self.connection.clone()))
            .await
    }

    /// Makes the number under `name` one more and tells what it is then.
    pub(super) async fn raise(&self, name: &str) -> Result<u64, Trouble> {
        let mut request = cmd("INCR");
        request.arg(name);
        self.read(request.query_async::<u64>(&mut self.connection.clone()))
            .await
    }

    /// Tells everybody who listens at `channel`.
    pub(super) async fn publish(&self, channel: &str, message: &[u8]) -> Result<(), Trouble> {
        let mut request = cmd("PUBLISH");
        request.arg(channel).arg(message);
        self.read(request.query_async::<()>(&mut self.connection.clone()))
            .await
    }

    /// Whether it says that it is a master.
    async fn is_master(&self) -> Result<bool, Trouble> {
        let request = cmd("ROLE");
        let mut connection = self.connection.clone();
        let reply: Vec<Value> = self.read(request.query_async(&mut connection)).await?;
        Ok(matches!(reply.first(), Some(Value::BulkString(role)) if role == b"master"))
    }

    async fn read<T>(&self, reply: impl Future<Output = RedisResult<T>>) -> Result<T, Trouble> {
        let reply = reply.await;
        self.unread.store(0, Ordering::Relaxed);
        Ok(reply?)
    }
}

/// Whether all of a server's addresses are this host's own, for which there is no way beside the tunnel.
pub(super) fn is_local(server: &EncryptedUrl) -> bool {
    server
        .addresses()
        .all(|address: SocketAddr| address.ip().is_loopback())
}

/// Hands a push on. Where that would lose it, the listener loses its teller instead, and knows by that.
fn tell(teller: &Mutex<Option<mpsc::Sender<News>>>, push: PushInfo) -> Result<(), ()> {
    let Some(news) = news_of(push) else {
        return Ok(());
    };
    let mut teller = teller.lock().unwrap_or_else(PoisonError::into_inner);
    let told = teller.as_ref().map(|teller| teller.try_send(news));
    if let Some(Ok(())) = told {
        return Ok(());
    }
    *teller = None;
    Err(())
}

/// What a push says, where it concerns us.
fn news_of(push: PushInfo) -> Option<News> {
    match push.kind {
        PushKind::Message => match push.data.into_iter().nth(1) {
            Some(Value::BulkString(octets)) => Some(News::Told(octets)),
            _ => None,
        },
        PushKind::Disconnection => Some(News::Lost),
        _ => None,
    }
}

impl From<RedisError> for Trouble {
    fn from(error: RedisError) -> Self {
        match error.code() {
            Some(WRONG_TYPE) => Self::WrongType,
            Some("OOM") => Self::Failed("it has no memory left".to_owned()),
            Some("READONLY") => Self::ReadOnly,
            Some("WRONGPASS") => {
                Self::Failed("it does not know the user, or not with this password".to_owned())
            }
            Some("NOAUTH") => Self::WantsPassword,
            _ if error.kind() == ErrorKind::AuthenticationFailed => Self::Failed(format!(
                "it does not know the user, or not with this password ({})",
                words(&error)
            )),
            _ => Self::Failed(words(&error)),
        }
    }
}

/// An error in one line without control characters: part of it is the store's own words.
fn words(error: &RedisError) -> String {
    const LONGEST: usize = 200;
    let text = error.to_string();
    let printable = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    printable.take(LONGEST).collect()
}

/// What replies come from and requests go to.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A stream that ends when more comes than replies have.
pub(super) struct Metered {
    stream: Box<dyn Stream>,
    unread: Arc<AtomicUsize>,
}

impl Metered {
    /// `unread` counts what has come; who has read a reply sets it to 0.
    pub(super) fn new(stream: Box<dyn Stream>, unread: Arc<AtomicUsize>) -> Self {
        Self { stream, unread }
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        let length = buffer.filled().len() - before;
        let unread = self.unread.fetch_add(length, Ordering::Relaxed);
        if unread > MOST_UNREAD {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "it sends more than it was asked for",
            )));
        }
        read
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        octets: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, octets)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
