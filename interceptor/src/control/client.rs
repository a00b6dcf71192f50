//! The command line's side of the control API.

use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::net::UnixStream;
use tokio::time;
use url::form_urlencoded;

use crate::rules::{Rule, RuleId};

use super::model::{
    Answered, CacheStatus, CachedAnswer, Flush, Flushed, Question, Reloaded, RuleStatus, Status,
};

/// How long the daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// An answer in bytes, at most: ten thousand rules have room in it.
const ANSWER_MAX: usize = 16 * 1024 * 1024;

/// Talks to the daemon at a control socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

/// Why the daemon did not do it.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody is there.
    #[error(
        "no interceptor answers at {}: is it running? start it with `interceptor run`, or name its socket with --control",
        .0.display()
    )]
    NotRunning(PathBuf, #[source] io::Error),
    /// We may not talk to it.
    #[error("the control socket {} belongs to {owner}; try sudo", .path.display())]
    PermissionDenied {
        /// The socket.
        path: PathBuf,
        /// Whose it is.
        owner: String,
    },
    /// The connection failed.
    #[error("cannot talk to the interceptor at {}: {source}", .path.display())]
    Connection {
        /// The socket.
        path: PathBuf,
        /// The reason.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It took too long.
    #[error("the interceptor at {} does not answer within {} s", .0.display(), PATIENCE.as_secs())]
    Slow(PathBuf),
    /// It refused, in its own words.
    #[error("{message}")]
    Refused {
        /// The HTTP status, such as 404 or 409.
        status: u16,
        /// One line.
        message: String,
    },
    /// What answers does not speak our language.
    #[error(
        "what answers at {} speaks another language: {reason}; is it an interceptor of another version?",
        .path.display()
    )]
    Unintelligible {
        /// The socket.
        path: PathBuf,
        /// What was not understood.
        reason: String,
    },
}

impl Client {
    /// A client of the daemon at `path`; nothing is connected yet.
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What the daemon does.
    pub async fn status(&self) -> Result<Status, ClientError> {
        self.ask(Method::GET, "/v1/status", Bytes::new()).await
    }

    /// The rules and what they took.
    pub async fn rules(&self) -> Result<Vec<RuleStatus>, ClientError> {
        self.ask(Method::GET, "/v1/rules", Bytes::new()).await
    }

    /// Adds a rule.
    pub async fn add_rule(&self, rule: &Rule) -> Result<RuleStatus, ClientError> {
        let body = serde_json::to_vec(rule).map_err(|error| self.connection(error))?;
        self.ask(Method::POST, "/v1/rules", body.into()).await
    }

    /// Removes a rule.
    pub async fn remove_rule(&self, id: RuleId) -> Result<RuleStatus, ClientError> {
        self.ask(Method::DELETE, &format!("/v1/rules/{id}"), Bytes::new())
            .await
    }

    /// Has the daemon read its configuration again.
    pub async fn reload(&self) -> Result<Reloaded, ClientError> {
        self.ask(Method::POST, "/v1/reload", Bytes::new()).await
    }

    /// What is remembered, and where.
    pub async fn cache(&self) -> Result<CacheStatus, ClientError> {
        self.ask(Method::GET, "/v1/cache", Bytes::new()).await
    }

    /// What is remembered about `name`, of one type or of all.
    pub async fn cached(
        &self,
        name: &str,
        qtype: Option<&str>,
    ) -> Result<Vec<CachedAnswer>, ClientError> {
        let route = "/v1/cache/answers?".to_owned();
        let start = route.len();
        let mut question = form_urlencoded::Serializer::for_suffix(route, start);
        question.append_pair("name", name);
        if let Some(qtype) = qtype {
            question.append_pair("type", qtype);
        }
        self.ask(Method::GET, &question.finish(), Bytes::new())
            .await
    }

    /// Forgets what `flush` says.
    pub async fn flush(&self, flush: &Flush) -> Result<Flushed, ClientError> {
        let body = serde_json::to_vec(flush).map_err(|error| self.connection(error))?;
        self.ask(Method::POST, "/v1/cache/flush", body.into()).await
    }

    /// Has a question answered as a client's.
    pub async fn query(&self, question: &Question) -> Result<Answered, ClientError> {
        let body = serde_json::to_vec(question).map_err(|error| self.connection(error))?;
        self.ask(Method::POST, "/v1/query", body.into()).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        route: &str,
        body: Bytes,
    ) -> Result<T, ClientError> {
        let Ok(answer) = time::timeout(PATIENCE, self.exchange(method, route, body)).await else {
            return Err(ClientError::Slow(self.path.clone()));
        };
        let (status, body) = answer?;
        if !status.is_success() {
            return Err(self.refusal(status, &body));
        }
        serde_json::from_slice(&body).map_err(|error| self.unintelligible(error.to_string()))
    }

    async fn exchange(
        &self,
        method: Method,
        route: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let request = Request::builder()
            .method(method)
            .uri(route)
            .header(HOST, "interceptor")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|error| self.connection(error))?;
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|error| self.no_connection(error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.connection(error))?;
        let talk = async {
            let response = sender
                .send_request(request)
                .await
                .map_err(|error| self.connection(error))?;
            self.whole(response).await
        };
        tokio::pin!(connection, talk);
        tokio::select! {
            biased;
            answer = &mut talk => answer,
            ended = &mut connection => match ended {
                Ok(()) => talk.await,
                Err(error) => Err(self.connection(error)),
            },
        }
    }

    async fn whole(
        &self,
        response: Response<Incoming>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let status = response.status();
        match Limited::new(response.into_body(), ANSWER_MAX)
            .collect()
            .await
        {
            Ok(body) => Ok((status, body.to_bytes())),
            Err(source) => Err(ClientError::Connection {
                path: self.path.clone(),
                source,
            }),
        }
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> ClientError {
        #[derive(Deserialize)]
        struct Told {
            error: String,
        }

        match serde_json::from_slice::<Told>(body) {
            Ok(told) => ClientError::Refused {
                status: status.as_u16(),
                message: told.error,
            },
            Err(_) => self.unintelligible(format!("it says {status}")),
        }
    }

    fn no_connection(&self, error: io::Error) -> ClientError {
        match error.kind() {
            ErrorKind::NotFound | ErrorKind::ConnectionRefused => {
                ClientError::NotRunning(self.path.clone(), error)
            }
            ErrorKind::PermissionDenied => ClientError::PermissionDenied {
                path: self.path.clone(),
                owner: owner(&self.path),
            },
            _ => self.connection(error),
        }
    }

    fn connection(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ClientError {
        ClientError::Connection {
            path: self.path.clone(),
            source: source.into(),
        }
    }

    fn unintelligible(&self, reason: String) -> ClientError {
        ClientError::Unintelligible {
            path: self.path.clone(),
            reason,
        }
    }
}

fn owner(path: &Path) -> String {
    match path.metadata() {
        Ok(metadata) if metadata.uid() != 0 => format!("user {}", metadata.uid()),
        _ => "root".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex, PoisonError};

    use serde_json::{Value, json};
    use tempfile::TempDir;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::UnixListener;
    use tokio::task::JoinHandle;
    use tokio_util::sync::CancellationToken;

    use crate::config::Change;
    use crate::control::{self, Backend, NamesStatus, ReaderStatus, Refusal, TierStatus};

    use super::*;
    use crate::net::testing::NoProgramStarts;

    #[tokio::test]
    async fn the_client_reads_the_status_that_the_daemon_gives() {
        let daemon = Daemon::start().await;
        assert_eq!(daemon.client.status().await.unwrap(), status(&[]));
        daemon.stop().await;
    }

    #[tokio::test]
    async fn a_rule_is_added_listed_and_removed() {
        let daemon = Daemon::start().await;
        let rule = rule("10.30.0.0/16 tcp port 53 -> dns");
        let added = daemon.client.add_rule(&rule).await.unwrap();
        assert_eq!((added.id, &added.rule), (RuleId(1), &rule));
        assert_eq!(
            daemon.client.rules().await.unwrap(),
            std::slice::from_ref(&added)
        );
        assert_eq!(daemon.client.remove_rule(RuleId(1)).await.unwrap(), added);
        assert_eq!(daemon.client.rules().await.unwrap(), []);
        daemon.stop().await;
    }

    #[tokio::test]
    async fn what_is_remembered_is_asked_for_and_flushed() {
        let daemon = Daemon::start().await;
        let cache = daemon.client.cache().await.unwrap();
        assert_eq!(cache.tiers[0].counters["hits"], 7);
        for (name, qtype) in [("a&b=c d.example", None), ("\\000.example", Some("A"))] {
            let (status, message) = refused(daemon.client.cached(name, qtype).await);
            assert_eq!((status, message), (400, format!("{name} {qtype:?}")));
        }
        let flushed = daemon.client.flush(&Flush::All).await.unwrap();
        assert_eq!(flushed.answers, 3);
        let suffix = Flush::Suffix("example".to_owned());
        let (_, message) = refused(daemon.client.flush(&suffix).await);
        assert_eq!(message, "Suffix(\"example\")");
        daemon.stop().await;
    }

    #[tokio::test]
    async fn a_reload_tells_what_it_has_changed_or_what_is_wrong() {
        let daemon = Daemon::start().await;
        let reloaded = daemon.client.reload().await.unwrap();
        assert_eq!(reloaded.changes, [change()]);
        let rule = rule("10.30.30.30 -> dns");
        daemon.client.add_rule(&rule).await.unwrap();
        let (status, message) = refused(daemon.client.reload().await);
        assert_eq!(
            (status, message.as_str()),
            (422, "x.toml:3:1: unknown key `a`")
        );
        daemon.stop().await;
    }

    #[tokio::test]
    async fn what_the_daemon_refuses_is_told_in_its_own_words() {
        let daemon = Daemon::start().await;
        let rule = rule("10.30.30.30 -> dns");
        daemon.client.add_rule(&rule).await.unwrap();
        assert_eq!(
            refused(daemon.client.add_rule(&rule).await),
            (409, "rule `10.30.30.30 -> dns` is there already".to_owned())
        );
        assert_eq!(
            refused(daemon.client.remove_rule(RuleId(7)).await),
            (
                404,
                "there is no rule 7; `interceptor rule list` shows those there are".to_owned()
            )
        );
        daemon.stop().await;
    }

    #[tokio::test]
    async fn every_wrong_request_gets_its_code_and_one_line_of_json() {
        let daemon = Daemon::start().await;
        for (request, code, message) in [
            ("GET /v2/status", 404, "there is nothing at /v2/status"),
            ("PUT /v1/status", 405, "PUT means nothing at /v1/status"),
            (
                "DELETE /v1/rules/x",
                400,
                "`x` is no rule's number; `interceptor rule list` shows those there are",
            ),
            (
                "POST /v1/rules {",
                400,
                "the body is no rule: EOF while parsing an object at line 1 column 1",
            ),
            (
                r#"POST /v1/rules {"destination":"10.0.0.1","prot":1}"#,
                400,
                "the body is no rule: unknown field `prot`, expected one of `destination`, `protocol`, `port`, \
                 `service` at line 1 column 32",
            ),
            (
                r#"POST /v1/rules {"destination":"any"}"#,
                400,
                "a rule for any destination needs a port: without one it would take all of the tunnel's traffic",
            ),
        ] {
            let (status, body) = daemon.raw(request).await;
            assert_eq!(
                (status, body),
                (code, json!({"error": message})),
                "{request}"
            );
        }
        daemon.stop().await;
    }

    #[tokio::test]
    async fn at_shutdown_the_socket_is_removed_though_a_client_is_silent() {
        let daemon = Daemon::start().await;
        let path = daemon.client.path.clone();
        let _silent = UnixStream::connect(&path).await.unwrap();
        daemon.stop().await;
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn without_a_daemon_the_error_says_how_to_start_one() {
        let _closing_frees = NoProgramStarts::wait();
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let told = format!(
            "no interceptor answers at {}: is it running? start it with `interceptor run`, or name its socket with \
             --control",
            path.display()
        );
        let client = Client::new(path.clone());
        assert_eq!(client.status().await.unwrap_err().to_string(), told);
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(client.status().await.unwrap_err().to_string(), told);
    }

    #[tokio::test]
    async fn something_else_at_the_socket_is_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("control.sock");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await.unwrap();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi")
                .await
                .unwrap();
        });
        let error = Client::new(path.clone()).rules().await.unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "what answers at {} speaks another language: expected value at line 1 column 1; is it an interceptor \
                 of another version?",
                path.display()
            )
        );
    }

    /// A server with a fake daemon behind it.
    struct Daemon {
        client: Client,
        shutdown: CancellationToken,
        task: JoinHandle<()>,
        _directory: TempDir,
    }

    impl Daemon {
        async fn start() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("control.sock");
            let socket = control::bind(&path).await.unwrap();
            let shutdown = CancellationToken::new();
            let serving = control::serve(socket, Arc::new(Fake::default()), shutdown.clone());
            Self {
                client: Client::new(path),
                shutdown,
                task: tokio::spawn(serving),
                _directory: directory,
            }
        }

        /// Sends `METHOD ROUTE [BODY]`.
        async fn raw(&self, request: &str) -> (u16, Value) {
            let mut parts = request.splitn(3, ' ');
            let method = parts.next().unwrap().parse().unwrap();
            let route = parts.next().unwrap();
            let body = parts.next().unwrap_or_default().to_owned();
            let (status, body) = self
                .client
                .exchange(method, route, body.into())
                .await
                .unwrap();
            (status.as_u16(), serde_json::from_slice(&body).unwrap())
        }

        async fn stop(self) {
            self.shutdown.cancel();
            self.task.await.unwrap();
        }
    }

    #[derive(Default)]
    struct Fake {
        rules: Mutex<Vec<RuleStatus>>,
    }

    impl Backend for Fake {
        async fn status(&self) -> Status {
            status(&self.rules())
        }

        fn rules(&self) -> Vec<RuleStatus> {
            self.rules
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .clone()
        }

        async fn add_rule(&self, rule: Rule) -> Result<RuleStatus, Refusal> {
            let mut rules = self.rules.lock().unwrap();
            for there in rules.iter() {
                there.rule.agrees_with(&rule)?;
            }
            let added = RuleStatus {
                id: RuleId(1 + rules.len() as u32),
                rule,
                packets: 3,
                bytes: 180,
            };
            rules.push(added.clone());
            Ok(added)
        }

        async fn remove_rule(&self, id: RuleId) -> Result<RuleStatus, Refusal> {
            let mut rules = self.rules.lock().unwrap();
            let Some(index) = rules.iter().position(|it| it.id == id) else {
                return Err(Refusal::UnknownRule(id));
            };
            Ok(rules.remove(index))
        }

        async fn reload(&self) -> Result<Reloaded, Refusal> {
            match self.rules().len() {
                0 => Ok(Reloaded {
                    changes: vec![change()],
                }),
                _ => Err(Refusal::Configuration(
                    "x.toml:3:1: unknown key `a`".to_owned(),
                )),
            }
        }

        fn cache(&self) -> CacheStatus {
            let counters = BTreeMap::from([("hits".to_owned(), 7)]);
            let tiers = vec![TierStatus {
                name: "memory".to_owned(),
                answers: 1,
                bytes: 200,
                capacity_bytes: 1000,
                state: None,
                counters,
            }];
            CacheStatus { tiers }
        }

        async fn cached(
            &self,
            name: &str,
            qtype: Option<&str>,
        ) -> Result<Vec<CachedAnswer>, Refusal> {
            Err(Refusal::Invalid(format!("{name} {qtype:?}")))
        }

        async fn query(&self, question: Question) -> Result<Answered, Refusal> {
            Err(Refusal::Invalid(format!(
                "{} {}",
                question.name, question.qtype
            )))
        }

        fn flush(&self, flush: &Flush) -> Result<Flushed, Refusal> {
            match flush {
                Flush::All => Ok(Flushed { answers: 3 }),
                other => Err(Refusal::Invalid(format!("{other:?}"))),
            }
        }
    }

    fn change() -> Change {
        Change {
            key: "dns.rounds".to_owned(),
            before: json!(2),
            after: json!(3),
        }
    }

    fn status(rules: &[RuleStatus]) -> Status {
        Status {
            version: "0.1.0".to_owned(),
            pid: 7,
            uptime_seconds: 60,
            tasks: 23,
            reader: Some(ReaderStatus {
                kind: "tun".to_owned(),
                device: "icept0".to_owned(),
                mtu: 1500,
                queues: vec![1],
                received: 1,
                sent: 2,
                dropped: 0,
                missed: Vec::new(),
            }),
            listeners: Vec::new(),
            interfaces: Vec::new(),
            rules: rules.to_vec(),
            upstreams: Vec::new(),
            groups: Vec::new(),
            cache: CacheStatus::default(),
            names: NamesStatus::default(),
            kernel: BTreeMap::new(),
            dns: json!({}),
            netstack: json!({}),
            bypass_mark: 51820,
        }
    }

    fn rule(text: &str) -> Rule {
        text.parse().unwrap()
    }

    fn refused<T: std::fmt::Debug>(answer: Result<T, ClientError>) -> (u16, String) {
        match answer.unwrap_err() {
            ClientError::Refused { status, message } => (status, message),
            other => panic!("{other}"),
        }
    }
}
