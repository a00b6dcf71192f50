//! The control API: HTTP+JSON on a Unix socket, for the command line, dashboards and scripts.
//!
//! | route | does |
//! |---|---|
//! | `GET /v1/status` | [`Status`] |
//! | `GET /v1/rules` | a list of [`RuleStatus`] |
//! | `POST /v1/rules` | adds the [`Rule`](crate::rules::Rule) in the body; 201 with its [`RuleStatus`] |
//! | `DELETE /v1/rules/{id}` | removes a rule; 200 with its last [`RuleStatus`] |
//! | `POST /v1/reload` | reads the configuration again; 200 with [`Reloaded`], 422 where it cannot be |
//! | `GET /v1/cache` | [`CacheStatus`] |
//! | `GET /v1/cache/answers?name=…&type=…` | a list of [`CachedAnswer`], of all types where none is given |
//! | `POST /v1/query` | answers the [`Question`] in the body as a client's; 200 with [`Answered`] |
//! | `POST /v1/cache/flush` | forgets what the [`Flush`] in the body says; 200 with [`Flushed`] |
//!
//! What fails is `{"error": "one line"}` with 400, 403, 404, 405, 408, 409, 413, 422 or 500.

mod answered;
pub mod client;
mod model;
mod server;
mod socket;

pub use model::{
    Answered, CacheStatus, CachedAnswer, Flush, Flushed, GroupStatus, InterfaceState,
    InterfaceStatus, ListenerStatus, MissedStatus, NamesStatus, QueryStep, Question, ReaderStatus,
    Reloaded, RuleStatus, Status, TierStatus, UpstreamStatus,
};
pub use server::{Backend, Refusal, serve};
pub use socket::{BindError, ControlSocket, bind, inspect};
