//! What commands that talk to a running daemon share: its socket, and a runtime to wait on.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use tokio::runtime;

use crate::config::{Key, Layer};
use crate::control::client::{Client, ClientError};

use super::settings;

#[derive(Args, Debug)]
pub(super) struct RemoteArgs {
    /// Configuration file that names the daemon's control socket
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The daemon's control socket [default: /run/interceptor/control.sock]
    #[arg(long, value_name = "PATH")]
    control: Option<String>,
}

impl RemoteArgs {
    /// Asks the daemon.
    pub(super) fn ask<T>(
        &self,
        question: impl AsyncFnOnce(&Client) -> Result<T, ClientError>,
    ) -> anyhow::Result<T> {
        let mut flags = Layer::default();
        flags.set_flag(Key::ControlSocket, "--control", self.control.as_deref());
        let socket = settings::sources(self.config.clone(), flags).control_socket()?;
        let client = Client::new(socket);
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        Ok(runtime.block_on(question(&client))?)
    }
}
