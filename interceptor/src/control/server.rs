//! The daemon's side of the control API: routes over a [`Backend`], for root and the daemon's own user.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use axum::serve::{IncomingStream, Listener};
use axum::{Json, Router};
use serde_json::json;
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::time;
use tokio_util::sync::CancellationToken;

use crate::rules::{Rule, RuleError, RuleId};

use super::model::{RuleStatus, Status};
use super::socket::ControlSocket;

/// A request's body in bytes, at most.
const BODY_MAX: usize = 64 * 1024;

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
    let app = router(backend).into_make_service_with_connect_info::<Peer>();
    let serving = axum::serve(Door(listener), app)
        .with_graceful_shutdown(shutdown.clone().cancelled_owned())
        .into_future();
    let out_of_patience = async {
        shutdown.cancelled().await;
        time::sleep(GRACE).await;
    };
    tokio::select! {
        served = serving => {
            if let Err(error) = served {
                tracing::error!(%error, "the control socket failed");
            }
        }
        () = out_of_patience => tracing::debug!("control requests cut off at shutdown"),
    }
    drop(file);
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
        .fallback(unknown_route)
        .layer(DefaultBodyLimit::max(BODY_MAX))
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
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<RuleStatus>), Response> {
    let body = body.map_err(|rejection| error(rejection.status(), &rejection.body_text()))?;
    let rule: Rule = serde_json::from_slice(&body).map_err(|reason| {
        error(
            StatusCode::BAD_REQUEST,
            &format!("the body is no rule: {reason}"),
        )
    })?;
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
async fn admit(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    if !peer.may_control() {
        return error(
            StatusCode::FORBIDDEN,
            "only root and the daemon's own user may control it",
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

impl Connected<IncomingStream<'_, Door>> for Peer {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        *stream.remote_addr()
    }
}

/// The listener that knows who comes in.
struct Door(UnixListener);

impl Listener for Door {
    type Io = UnixStream;
    type Addr = Peer;

    async fn accept(&mut self) -> (UnixStream, Peer) {
        loop {
            match self.0.accept().await {
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

    fn local_addr(&self) -> std::io::Result<Peer> {
        Ok(Peer {
            uid: Some(nix::unistd::geteuid().as_raw()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use crate::control::client::{Client, ClientError};

    use super::*;

    #[tokio::test]
    async fn a_stranger_is_refused_even_where_the_socket_lets_him_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let strangers = StrangersOnly(UnixListener::bind(&path).unwrap());
        let app = router(Arc::new(Untouched)).into_make_service_with_connect_info::<Peer>();
        let server = tokio::spawn(axum::serve(strangers, app).into_future());
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

    #[test]
    fn only_root_and_the_daemons_own_user_may_control_it() {
        let own = nix::unistd::geteuid().as_raw();
        assert!(Peer { uid: Some(0) }.may_control());
        assert!(Peer { uid: Some(own) }.may_control());
        assert!(!Peer { uid: Some(own + 1) }.may_control());
        assert!(!Peer { uid: None }.may_control());
    }

    /// A door through which only strangers come.
    struct StrangersOnly(UnixListener);

    impl Listener for StrangersOnly {
        type Io = UnixStream;
        type Addr = Peer;

        async fn accept(&mut self) -> (UnixStream, Peer) {
            let (stream, _) = self.0.accept().await.unwrap();
            (stream, STRANGER)
        }

        fn local_addr(&self) -> io::Result<Peer> {
            Ok(STRANGER)
        }
    }

    impl Connected<IncomingStream<'_, StrangersOnly>> for Peer {
        fn connect_info(stream: IncomingStream<'_, StrangersOnly>) -> Self {
            *stream.remote_addr()
        }
    }

    const STRANGER: Peer = Peer {
        uid: Some(u32::MAX - 1),
    };

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
    }
}
