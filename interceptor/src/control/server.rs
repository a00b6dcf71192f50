//! The daemon's side of the control API: routes over a [`Backend`], for root and the daemon's own user.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Bytes, HttpBody as _};
use axum::extract::rejection::QueryRejection;
use axum::extract::{DefaultBodyLimit, FromRequest as _, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Extension, Json, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::rules::{Rule, RuleError, RuleId};

use super::model::{
    Answered, CacheStatus, CachedAnswer, Flush, Flushed, Question, Reloaded, RuleStatus, Status,
};
use super::socket::ControlSocket;

/// A request's body in bytes, at most.
const BODY_MAX: usize = 64 * 1024;

/// Connections at once, at most; others wait to be accepted.
const CONNECTIONS_MAX: usize = 64;

/// How long a client may take for a request's headers, from the connection's start or the answer before, and for its body.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// How long requests in flight may take once the daemon stops.
const GRACE: Duration = Duration::from_secs(1);

/// How long nothing is accepted after the system refused to accept (no file descriptors left, say).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The daemon, as the control API sees it.
pub trait Backend: Send + Sync + 'static {
    /// What the daemon does.
    fn status(&self) -> impl Future<Output = Status> + Send;

    /// The rules and what they took.
    fn rules(&self) -> Vec<RuleStatus>;

    /// Adds a rule, which is valid by itself.
    fn add_rule(&self, rule: Rule) -> impl Future<Output = Result<RuleStatus, Refusal>> + Send;

    /// Removes a rule.
    fn remove_rule(&self, id: RuleId) -> impl Future<Output = Result<RuleStatus, Refusal>> + Send;

    /// Reads the configuration again and puts into force what has changed, all of it or nothing.
    fn reload(&self) -> impl Future<Output = Result<Reloaded, Refusal>> + Send;

    /// What is remembered, and where.
    fn cache(&self) -> CacheStatus;

    /// What is remembered about `name`, of one type or of all.
    fn cached(
        &self,
        name: &str,
        qtype: Option<&str>,
    ) -> impl Future<Output = Result<Vec<CachedAnswer>, Refusal>> + Send;

    /// Answers a question as a client's.
    fn query(&self, question: Question) -> impl Future<Output = Result<Answered, Refusal>> + Send;

    /// Forgets what `flush` says.
    fn flush(&self, flush: &Flush) -> Result<Flushed, Refusal>;
}

/// Why a request is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    /// The request cannot be understood or cannot be (400).
    #[error("{0}")]
    Invalid(String),
    /// There is no such rule (404).
    #[error("there is no rule {0}; `interceptor rule list` shows those there are")]
    UnknownRule(RuleId),
    /// It contradicts what is there (409).
    #[error("{0}")]
    Conflict(String),
    /// The configuration that was to be loaded cannot be (422).
    #[error("{0}")]
    Configuration(String),
    /// It should have worked (500).
    #[error("{0}")]
    Failed(String),
}

/// Serves until `shutdown`, then answers what is in flight and removes the socket's file.
pub async fn serve<B: Backend>(
    socket: ControlSocket,
    backend: Arc<B>,
    shutdown: CancellationToken,
) {
    let ControlSocket { listener, file } = socket;
    let app = router(backend);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(_) = connections.join_next() => {}
            (stream, peer) = accept(&listener), if connections.len() < CONNECTIONS_MAX => {
                connections.spawn(converse(stream, peer, app.clone(), shutdown.clone()));
            }
        }
    }
    drop(listener);
    let answered = time::timeout(GRACE, async {
        while connections.join_next().await.is_some() {}
    });
    if answered.await.is_err() {
        tracing::debug!("control requests cut off at shutdown");
    }
    drop(file);
}

/// Serves one connection, until `shutdown` only what it has asked already.
async fn converse(stream: UnixStream, peer: Peer, app: Router, shutdown: CancellationToken) {
    let service = TowerToHyperService::new(app.layer(Extension(peer)));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a control connection ended early");
    }
}

/// The next connection, and who is at its other end.
async fn accept(listener: &UnixListener) -> (UnixStream, Peer) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let uid = stream.peer_cred().ok().map(|peer| peer.uid());
                return (stream, Peer { uid });
            }
            Err(error) => {
                tracing::debug!(%error, "cannot accept on the control socket");
                time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn router<B: Backend>(backend: Arc<B>) -> Router {
    let route = |methods: MethodRouter<Arc<B>>| methods.fallback(method_not_allowed);
    Router::new()
        .route("/v1/status", route(get(status::<B>)))
        .route("/v1/rules", route(get(rules::<B>).post(add_rule::<B>)))
        .route(
            "/v1/rules/{id}",
            route(axum::routing::delete(remove_rule::<B>)),
        )
        .route("/v1/reload", route(post(reload::<B>)))
        .route("/v1/cache", route(get(cache::<B>)))
        .route("/v1/cache/answers", route(get(cached::<B>)))
        .route("/v1/cache/flush", route(post(flush::<B>)))
        .route("/v1/query", route(post(query::<B>)))
        .fallback(unknown_route)
        .layer(DefaultBodyLimit::max(BODY_MAX))
        .layer(middleware::from_fn(measure))
        .layer(middleware::from_fn(admit))
        .with_state(backend)
}

async fn status<B: Backend>(State(backend): State<Arc<B>>) -> Json<Status> {
    Json(backend.status().await)
}

async fn rules<B: Backend>(State(backend): State<Arc<B>>) -> Json<Vec<RuleStatus>> {
    Json(backend.rules())
}

async fn add_rule<B: Backend>(
    State(backend): State<Arc<B>>,
    request: Request,
) -> Result<(StatusCode, Json<RuleStatus>), Response> {
    let rule: Rule = body(request, "rule").await?;
    rule.validate()
        .map_err(|reason| Refusal::from(reason).into_response())?;
    let added = backend
        .add_rule(rule)
        .await
        .map_err(IntoResponse::into_response)?;
    Ok((StatusCode::CREATED, Json(added)))
}

async fn remove_rule<B: Backend>(
    State(backend): State<Arc<B>>,
    Path(id): Path<String>,
) -> Result<Json<RuleStatus>, Refusal> {
    let id = id
        .parse()
        .map_err(|error: RuleError| Refusal::Invalid(error.to_string()))?;
    Ok(Json(backend.remove_rule(id).await?))
}

async fn reload<B: Backend>(State(backend): State<Arc<B>>) -> Result<Json<Reloaded>, Refusal> {
    Ok(Json(backend.reload().await?))
}

async fn cache<B: Backend>(State(backend): State<Arc<B>>) -> Json<CacheStatus> {
    Json(backend.cache())
}

/// What is asked about a name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CacheQuestion {
    name: String,
    #[serde(rename = "type")]
    qtype: Option<String>,
}

async fn cached<B: Backend>(
    State(backend): State<Arc<B>>,
    question: Result<Query<CacheQuestion>, QueryRejection>,
) -> Result<Json<Vec<CachedAnswer>>, Refusal> {
    let Query(question) = question.map_err(|reason| Refusal::Invalid(reason.body_text()))?;
    let found = backend.cached(&question.name, question.qtype.as_deref());
    Ok(Json(found.await?))
}

async fn flush<B: Backend>(
    State(backend): State<Arc<B>>,
    request: Request,
) -> Result<Json<Flushed>, Response> {
    let what: Flush = body(request, "flush").await?;
    let flushed = backend.flush(&what);
    Ok(Json(flushed.map_err(IntoResponse::into_response)?))
}

async fn query<B: Backend>(
    State(backend): State<Arc<B>>,
    request: Request,
) -> Result<Json<Answered>, Response> {
    let question: Question = body(request, "question").await?;
    let answered = backend.query(question).await;
    Ok(Json(answered.map_err(IntoResponse::into_response)?))
}

/// The body of `request`, which is to be `what`.
async fn body<T: DeserializeOwned>(request: Request, what: &str) -> Result<T, Response> {
    let Ok(body) = time::timeout(PATIENCE, Bytes::from_request(request, &())).await else {
        return Err(error(
            StatusCode::REQUEST_TIMEOUT,
            &format!("the body did not come within {} s", PATIENCE.as_secs()),
        ));
    };
    let body = body.map_err(|rejection| error(rejection.status(), &rejection.body_text()))?;
    serde_json::from_slice(&body).map_err(|reason| {
        error(
            StatusCode::BAD_REQUEST,
            &format!("the body is no {what}: {reason}"),
        )
    })
}

async fn unknown_route(request: Request) -> Response {
    let path = request.uri().path();
    error(
        StatusCode::NOT_FOUND,
        &format!("there is nothing at {path}"),
    )
}

async fn method_not_allowed(request: Request) -> Response {
    let (method, path) = (request.method(), request.uri().path());
    error(
        StatusCode::METHOD_NOT_ALLOWED,
        &format!("{method} means nothing at {path}"),
    )
}

/// The socket's mode admits nobody else either; this holds even where somebody has widened it.
async fn admit(Extension(peer): Extension<Peer>, request: Request, next: Next) -> Response {
    if !peer.may_control() {
        return error(
            StatusCode::FORBIDDEN,
            "only root and the daemon's own user may control it",
        );
    }
    next.run(request).await
}

/// Refuses a body that says itself that it is too long, rather than reading on until it is.
async fn measure(request: Request, next: Next) -> Response {
    let length = request.body().size_hint().lower();
    if length > BODY_MAX as u64 {
        return error(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("the body is too long: {length} bytes of at most {BODY_MAX}"),
        );
    }
    next.run(request).await
}

fn error(code: StatusCode, message: &str) -> Response {
    let line = message.lines().map(str::trim).collect::<Vec<_>>().join(" ");
    (code, Json(json!({"error": line}))).into_response()
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let code = match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::UnknownRule(_) => StatusCode::NOT_FOUND,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Configuration(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        error(code, &self.to_string())
    }
}

impl From<RuleError> for Refusal {
    fn from(reason: RuleError) -> Self {
        match reason {
            RuleError::Contradiction { .. } | RuleError::Duplicate(_) => {
                Self::Conflict(reason.to_string())
            }
            _ => Self::Invalid(reason.to_string()),
        }
    }
}

/// Who is at the other end of a connection, by the kernel's word (`SO_PEERCRED`).
#[derive(Clone, Copy, Debug)]
struct Peer {
    /// None when the kernel does not tell.
    uid: Option<u32>,
}

impl Peer {
    fn may_control(self) -> bool {
        self.uid
            .is_some_and(|uid| uid == 0 || uid == nix::unistd::geteuid().as_raw())
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinHandle;

    use crate::control;
    use crate::control::client::{Client, ClientError};

    use super::*;

    #[tokio::test]
    async fn a_stranger_is_refused_even_where_the_socket_lets_him_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let server = tokio::spawn(async move {
            loop {
                let (stream, _) = accept(&listener).await;
                let stranger = Peer {
                    uid: Some(u32::MAX - 1),
                };
                let app = router(Arc::new(Untouched));
                converse(stream, stranger, app, CancellationToken::new()).await;
            }
        });
        let client = Client::new(path);
        for answer in [
            client.status().await.map(|_| ()),
            client.remove_rule(RuleId(1)).await.map(|_| ()),
        ] {
            let Err(ClientError::Refused { status, message }) = answer else {
                panic!("{answer:?}");
            };
            assert_eq!(status, 403);
            assert_eq!(
                message,
                "only root and the daemon's own user may control it"
            );
        }
        server.abort();
    }

    #[tokio::test]
    async fn a_client_that_does_not_get_to_the_point_is_shown_out() {
        let served = Served::start().await;
        for beginning in [
            "",
            "GET /v1/sta",
            "GET /nothing HTTP/1.1\r\nhost: a\r\n\r\nGET",
        ] {
            let mut stream = served.connect().await;
            stream.write_all(beginning.as_bytes()).await.unwrap();
            stream.read_to_end(&mut Vec::new()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_body_that_does_not_come_is_not_waited_for() {
        let served = Served::start().await;
        let answer = served
            .ask("POST /v1/rules HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\n{")
            .await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    }

    #[tokio::test]
    async fn a_body_that_announces_itself_too_long_is_refused_whether_it_comes_or_not() {
        let served = Served::start().await;
        for body in [String::new(), "x".repeat(65537)] {
            let head = "POST /v1/rules HTTP/1.1\r\nhost: a\r\ncontent-length: 65537\r\n\r\n";
            let answer = served.ask(&format!("{head}{body}")).await;
            assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
            assert!(answer.contains("65537 bytes of at most 65536"), "{answer}");
        }
    }

    #[tokio::test]
    async fn a_body_that_turns_out_too_long_is_refused() {
        let served = Served::start().await;
        let head = "POST /v1/rules HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
        let chunk = format!("10001\r\n{}", "x".repeat(0x10001));
        let answer = served.ask(&format!("{head}{chunk}")).await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
    }

    #[tokio::test]
    async fn beyond_the_most_connections_the_next_waits_until_one_has_gone() {
        let served = Served::start().await;
        let mut silent = Vec::new();
        for _ in 0..CONNECTIONS_MAX {
            silent.push(served.connect().await);
        }
        let mut late = served.connect().await;
        late.write_all(NOTHING.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        let wait = time::timeout(PATIENCE / 10, late.read_exact(&mut answer));
        assert!(wait.await.is_err());
        silent.pop();
        late.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 404");
    }

    #[tokio::test]
    async fn at_shutdown_connections_that_ask_nothing_are_closed_and_the_file_goes() {
        let mut served = Served::start().await;
        let mut idle = served.connect().await;
        idle.write_all(NOTHING.as_bytes()).await.unwrap();
        idle.read_exact(&mut [0; 12]).await.unwrap();
        served.shutdown.cancel();
        (&mut served.task).await.unwrap();
        idle.read_to_end(&mut Vec::new()).await.unwrap();
        assert!(!served.path().exists());
    }

    #[test]
    fn only_root_and_the_daemons_own_user_may_control_it() {
        let own = nix::unistd::geteuid().as_raw();
        assert!(Peer { uid: Some(0) }.may_control());
        assert!(Peer { uid: Some(own) }.may_control());
        assert!(!Peer { uid: Some(own + 1) }.may_control());
        assert!(!Peer { uid: None }.may_control());
    }

    const NOTHING: &str = "GET /nothing HTTP/1.1\r\nhost: a\r\n\r\n";

    /// A server with a socket of its own.
    struct Served {
        directory: tempfile::TempDir,
        shutdown: CancellationToken,
        task: JoinHandle<()>,
    }

    impl Served {
        async fn start() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let socket = control::bind(&directory.path().join("control.sock"))
                .await
                .unwrap();
            let shutdown = CancellationToken::new();
            let task = tokio::spawn(serve(socket, Arc::new(Untouched), shutdown.clone()));
            Self {
                directory,
                shutdown,
                task,
            }
        }

        fn path(&self) -> PathBuf {
            self.directory.path().join("control.sock")
        }

        async fn connect(&self) -> UnixStream {
            UnixStream::connect(self.path()).await.unwrap()
        }

        /// Says `text` and hears the answer's beginning.
        async fn ask(&self, text: &str) -> String {
            let mut stream = self.connect().await;
            stream.write_all(text.as_bytes()).await.unwrap();
            let mut answer = vec![0; 4096];
            let length = stream.read(&mut answer).await.unwrap();
            String::from_utf8_lossy(&answer[..length]).into_owned()
        }
    }

    /// A daemon that nobody gets to.
    struct Untouched;

    impl Backend for Untouched {
        async fn status(&self) -> Status {
            unreachable!()
        }

        fn rules(&self) -> Vec<RuleStatus> {
            unreachable!()
        }

        async fn add_rule(&self, _: Rule) -> Result<RuleStatus, Refusal> {
            unreachable!()
        }

        async fn remove_rule(&self, _: RuleId) -> Result<RuleStatus, Refusal> {
            unreachable!()
        }

        async fn reload(&self) -> Result<Reloaded, Refusal> {
            unreachable!()
        }

        fn cache(&self) -> CacheStatus {
            unreachable!()
        }

        async fn cached(&self, _: &str, _: Option<&str>) -> Result<Vec<CachedAnswer>, Refusal> {
            unreachable!()
        }

        async fn query(&self, _: Question) -> Result<Answered, Refusal> {
            unreachable!()
        }

        fn flush(&self, _: &Flush) -> Result<Flushed, Refusal> {
            unreachable!()
        }
    }
}
