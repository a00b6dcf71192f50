//! `interceptor query`: one question, what answers it, and why.

mod reply;

use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use data_encoding::BASE64;
use tokio::runtime;

use crate::bypass::Bypass;
use crate::control::{Answered, Question};
use crate::daemon;
use crate::dns::cache::Qtype;
use crate::dns::question;
use crate::dns::upstream::{UpstreamUrl, UpstreamUrlError};
use crate::dns::{CacheConfig, DnsConfig, Server};
use crate::rules::Transport;

use super::remote::RemoteArgs;
use reply::Reply;

pub(super) const HELP: &str = "\
The daemon answers as it would a client: from its records, from memory, or from an upstream. With --via the upstream is asked \
directly, without a daemon and without privileges; queries then carry the mark of the daemon's own where that may be set. \
What the kernel would have answered by itself is not seen here. Whatever the answer says, the exit code is 0; it is 1 where \
there is none.";

/// How long an upstream that is asked directly may take.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Args, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct QueryArgs {
    /// The name, or an address to look up in reverse
    #[arg(value_parser = name)]
    name: String,

    /// The type of records [default: A, or PTR for an address]
    #[arg(value_name = "TYPE", value_parser = str::parse::<Qtype>)]
    qtype: Option<Qtype>,

    /// Ask this upstream directly, as tls://1.1.1.1#cloudflare-dns.com
    #[arg(long, value_name = "URL", value_parser = upstream)]
    via: Option<UpstreamUrl>,

    /// Ask as a client that came over TCP, or an upstream over TCP
    #[arg(long)]
    tcp: bool,

    /// Ask for DNSSEC records (DO)
    #[arg(long = "do")]
    dnssec_ok: bool,

    /// Ask for an answer that upstreams need not validate (CD)
    #[arg(long = "cd")]
    checking_disabled: bool,

    /// Print the records' data alone
    #[arg(long, conflicts_with = "json")]
    short: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    remote: RemoteArgs,
}

pub(super) fn execute(args: &QueryArgs) -> anyhow::Result<()> {
    let question = args.question();
    let answered = match &args.via {
        Some(url) => args.ask_directly(url, &question)?,
        None => (args.remote).ask(async |client| client.query(&question).await)?,
    };
    let message = BASE64
        .decode(answered.message.as_bytes())
        .context("what the daemon answered is no message")?;
    let reply = Reply::read(&message)?;
    if args.json {
        super::print_json(&reply.to_json(&answered))
    } else if args.short {
        super::print(&reply.short())
    } else {
        super::print(&reply.text(&question, &answered))
    }
}

impl QueryArgs {
    fn question(&self) -> Question {
        let reverse = question::reverse(&self.name);
        let usual = if reverse.is_some() { "PTR" } else { "A" };
        Question {
            name: reverse.unwrap_or_else(|| self.name.clone()),
            qtype: self.qtype.map_or(usual.to_owned(), |it| it.to_string()),
            tcp: self.tcp,
            dnssec_ok: self.dnssec_ok,
            checking_disabled: self.checking_disabled,
        }
    }

    /// Asks `url` alone, as the daemon would.
    fn ask_directly(&self, url: &UpstreamUrl, question: &Question) -> anyhow::Result<Answered> {
        let url = match url {
            UpstreamUrl::Udp(address) if self.tcp => UpstreamUrl::Tcp(*address),
            other => other.clone(),
        };
        let qtype: Qtype = question.qtype.parse()?;
        let (dnssec_ok, unchecked) = (question.dnssec_ok, question.checking_disabled);
        let message = question::message(&question.name, qtype, dnssec_ok, unchecked)?;
        let config = DnsConfig {
            upstreams: vec![url.clone()],
            attempt_timeout: PATIENCE,
            rounds: 1,
            deadline: PATIENCE,
            cache: CacheConfig {
                enabled: false,
                ..CacheConfig::default()
            },
            ..DnsConfig::default()
        };
        let bypass = Bypass::new(self.mark(), None);
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let lookup = runtime.block_on(async {
            let server = Server::new(config, bypass, None);
            server.look_up(&message, Transport::Udp).await
        });
        let lookup = lookup.context("that is no question")?;
        if lookup.decisive().is_none() && !lookup.steps.iter().any(|it| it.rcode.is_some()) {
            let reason = lookup.steps.iter().rfind(|it| it.transport.is_some());
            let reason = reason.map_or("it was not asked", |it| it.outcome.as_str());
            return Err(anyhow!("no answer from {}: {reason}", url.label()));
        }
        Ok(lookup.into())
    }

    /// The running daemon's mark, where there is one and we may set it.
    fn mark(&self) -> u32 {
        if !Bypass::may_mark() {
            return 0;
        }
        let status = self.remote.ask(async |client| client.status().await);
        status.map_or(daemon::DEFAULT_MARK, |status| status.bypass_mark)
    }
}

fn upstream(text: &str) -> Result<UpstreamUrl, UpstreamUrlError> {
    let url: UpstreamUrl = text.parse()?;
    url.demand_address()?;
    Ok(url)
}

fn name(text: &str) -> Result<String, String> {
    question::message(text, Qtype(1), false, false)
        .map(|_| text.to_owned())
        .map_err(|error| error.to_string())
}
