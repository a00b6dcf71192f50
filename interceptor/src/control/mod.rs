//! The control API: HTTP+JSON on a Unix socket, for the command line, dashboards and scripts.
//!
//! | route | does |
//! |---|---|
//! | `GET /v1/status` | [`Status`] |
//! | `GET /v1/rules` | a list of [`RuleStatus`] |
//! | `POST /v1/rules` | adds the [`Rule`](crate::rules::Rule) in the body; 201 with its [`RuleStatus`] |
//! | `DELETE /v1/rules/{id}` | removes a rule; 200 with its last [`RuleStatus`] |
//!
//! What fails is `{"error": "one line"}` with 400, 403, 404, 405, 408, 409, 413 or 500.

pub mod client;
mod model;
mod server;
mod socket;

pub use model::{
    InterfaceState, InterfaceStatus, ReaderStatus, RuleStatus, Status, UpstreamStatus,
};
pub use server::{Backend, Refusal, serve};
pub use socket::{BindError, ControlSocket, bind, inspect};
