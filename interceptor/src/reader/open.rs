//! Which reader it is: the one that was asked for, or the one that is to be had.

use std::fmt;
use std::sync::Arc;

use anyhow::{Error, Result, bail};
use tracing::warn;

use super::af_xdp::AfXdpReader;
use super::tun::TunReader;
use super::{CountMissed, Reader, Received};
use crate::config::{ReaderConfig, ReaderMode};
use crate::kernel::LinkLayer;

/// The readers that `auto` tries, the preferred one first.
const PREFERENCE: [Kind; 2] = [Kind::Tun, Kind::AfXdp];

/// How packets reach user space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// By the file of a TUN device.
    Tun,
    /// By the rings of an AF_XDP socket behind a veth device.
    AfXdp,
}

/// A reader's device.
#[derive(Clone, Debug)]
pub struct Device {
    /// How packets reach user space from there.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// Its interface index.
    pub index: u32,
    /// What has come by each of its queues.
    pub received: Received,
    /// What the kernel could not bring by them, where it tells us.
    pub missed: Option<Arc<dyn CountMissed>>,
}

/// A reader that is open.
pub struct Opened {
    /// The reader.
    pub reader: Box<dyn Reader>,
    /// Its device.
    pub device: Device,
}

/// Opens the reader that `config` asks for, its device's MTU being `mtu` bytes; says so where another than the preferred
/// one is taken.
///
/// Fails with the reason where the one that was asked for is not to be had, or none is.
pub async fn open(config: &ReaderConfig, mtu: u16) -> Result<Opened> {
    let candidates = candidates(config.mode);
    let (opened, passed_over) = first(candidates, async |kind| create(kind, config, mtu).await)
        .await
        .map_err(|error| hinted(error, candidates))?;
    if let Some((kind, reason)) = passed_over {
        let taken = opened.device.kind;
        warn!("no {kind} reader here, taking {taken}: {reason}");
    }
    Ok(opened)
}

/// Which reader [`open`] would take, and why not the preferred one; changes nothing.
pub async fn find(mode: ReaderMode) -> Result<(Kind, Option<(Kind, Error)>)> {
    let candidates = candidates(mode);
    first(candidates, async |kind| probe(kind).map(|()| kind))
        .await
        .map_err(|error| hinted(error, candidates))
}

impl Kind {
    /// What the reader's device's packets begin with.
    pub fn link_layer(self) -> LinkLayer {
        match self {
            Self::Tun => LinkLayer::Ip,
            Self::AfXdp => LinkLayer::Ethernet,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tun => "tun",
            Self::AfXdp => "af-xdp",
        })
    }
}

fn candidates(mode: ReaderMode) -> &'static [Kind] {
    match mode {
        ReaderMode::Auto => &PREFERENCE,
        ReaderMode::Tun => &[Kind::Tun],
        ReaderMode::AfXdp => &[Kind::AfXdp],
    }
}

/// What `attempt` makes of the first candidate with which it succeeds, and why it did not with the one before; where
/// there is none, the first one's error.
async fn first<T>(
    candidates: &[Kind],
    attempt: impl AsyncFn(Kind) -> Result<T>,
) -> Result<(T, Option<(Kind, Error)>)> {
    let mut passed_over = None;
    for kind in candidates {
        match attempt(*kind).await {
            Ok(made) => return Ok((made, passed_over)),
            Err(error) => passed_over = passed_over.or(Some((*kind, error))),
        }
    }
    match passed_over {
        Some((_, error)) => Err(error),
        None => bail!("there are no readers"),
    }
}

/// Somebody who has asked for AF_XDP is told what does without.
fn hinted(error: Error, candidates: &[Kind]) -> Error {
    if candidates == [Kind::AfXdp] {
        let reason = format!("no af-xdp reader here (`--reader auto` takes another): {error}");
        return error.context(reason);
    }
    error
}

async fn create(kind: Kind, config: &ReaderConfig, mtu: u16) -> Result<Opened> {
    let name = config.device.as_deref();
    match kind {
        Kind::Tun => {
            let reader = TunReader::create(name, mtu)?;
            let device = Device {
                kind,
                name: reader.name().to_owned(),
                index: reader.index(),
                received: reader.received().clone(),
                missed: None,
            };
            Ok(Opened {
                reader: Box::new(reader),
                device,
            })
        }
        Kind::AfXdp => {
            let reader = AfXdpReader::create(name, mtu, config.busy_poll).await?;
            let device = Device {
                kind,
                name: reader.name().to_owned(),
                index: reader.index(),
                received: reader.received().clone(),
                missed: Some(reader.missed()),
            };
            Ok(Opened {
                reader: Box::new(reader),
                device,
            })
        }
    }
}

fn probe(kind: Kind) -> Result<()> {
    match kind {
        Kind::Tun => Ok(TunReader::probe()?),
        Kind::AfXdp => Ok(AfXdpReader::probe()?),
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    #[tokio::test]
    async fn the_preferred_reader_is_taken_where_it_is_to_be_had() {
        let (taken, passed_over) = first(&PREFERENCE, async |kind| Ok(kind)).await.unwrap();

        assert_eq!(taken, PREFERENCE[0]);
        assert!(passed_over.is_none());
    }

    #[tokio::test]
    async fn another_is_taken_where_the_preferred_one_is_not_and_the_reason_is_kept() {
        for order in [[Kind::Tun, Kind::AfXdp], [Kind::AfXdp, Kind::Tun]] {
            let (taken, passed_over) = first(&order, only(order[1])).await.unwrap();

            assert_eq!(taken, order[1]);
            let (kind, reason) = passed_over.unwrap();
            assert_eq!(kind, order[0]);
            assert_eq!(reason.to_string(), format!("no {}", order[0]));
        }
    }

    #[tokio::test]
    async fn where_none_is_to_be_had_the_preferred_ones_reason_is_given() {
        let none = first(&PREFERENCE, async |kind| Err::<(), _>(anyhow!("no {kind}"))).await;

        assert_eq!(
            none.unwrap_err().to_string(),
            format!("no {}", PREFERENCE[0])
        );
    }

    #[tokio::test]
    async fn what_was_asked_for_is_not_replaced() {
        let asked = first(candidates(ReaderMode::AfXdp), only(Kind::Tun)).await;

        assert_eq!(asked.unwrap_err().to_string(), "no af-xdp");
    }

    fn only(wanted: Kind) -> impl AsyncFn(Kind) -> Result<Kind> {
        async move |kind| match kind {
            kind if kind == wanted => Ok(kind),
            kind => Err(anyhow!("no {kind}")),
        }
    }
}
