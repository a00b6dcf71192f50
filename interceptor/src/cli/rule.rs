//! `interceptor rule`: the rules of the running daemon.

use clap::{Args, Subcommand};

use crate::control::RuleStatus;
use crate::rules::{Destination, Protocol, Rule, RuleId, ServiceName};

use super::remote::RemoteArgs;
use super::table::{Table, bytes, grouped};

#[derive(Args, Debug)]
pub(super) struct RuleArgs {
    #[command(subcommand)]
    command: RuleCommand,
}

#[derive(Debug, Subcommand)]
enum RuleCommand {
    /// Intercept something else as well, until the daemon stops
    Add {
        /// An address, a prefix, or "any"
        destination: Destination,

        /// udp, tcp or icmp [default: all of them]
        #[arg(long, value_name = "PROTOCOL")]
        protocol: Option<Protocol>,

        /// Destination port [default: all of them]
        #[arg(long, value_name = "PORT")]
        port: Option<u16>,

        /// What answers: dns or echo
        #[arg(long, value_name = "SERVICE", default_value_t)]
        service: ServiceName,

        /// Print JSON
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// Stop intercepting what a rule takes
    Remove {
        /// The rule's number, as `rule list` shows it
        id: RuleId,

        /// Print JSON
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        remote: RemoteArgs,
    },
    /// List the rules and what they took
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,

        #[command(flatten)]
        remote: RemoteArgs,
    },
}

pub(super) fn execute(args: RuleArgs) -> anyhow::Result<()> {
    match args.command {
        RuleCommand::Add {
            destination,
            protocol,
            port,
            service,
            json,
            remote,
        } => {
            let rule = Rule {
                destination,
                protocol,
                port,
                service,
            };
            rule.validate()?;
            let added = remote.ask(async |client| client.add_rule(&rule).await)?;
            tell("added", &added, json)
        }
        RuleCommand::Remove { id, json, remote } => {
            let removed = remote.ask(async |client| client.remove_rule(id).await)?;
            tell("removed", &removed, json)
        }
        RuleCommand::List { json, remote } => {
            let rules = remote.ask(async |client| client.rules().await)?;
            if json {
                super::print_json(&rules)
            } else {
                super::print(&table(&rules).render(""))
            }
        }
    }
}

pub(super) fn table(rules: &[RuleStatus]) -> Table {
    let mut table = Table::new(&["ID", "RULE", "PACKETS", "BYTES"], &[0, 2, 3]);
    for status in rules {
        table.row([
            status.id.to_string(),
            status.rule.to_string(),
            grouped(status.packets),
            bytes(status.bytes),
        ]);
    }
    table
}

fn tell(what: &str, status: &RuleStatus, json: bool) -> anyhow::Result<()> {
    if json {
        return super::print_json(status);
    }
    super::print(&format!("{what} rule {}: {}\n", status.id, status.rule))
}
