//! Whether a daemon runs already, which then has for itself what another would find taken.

use super::Point;
use crate::config::Config;
use crate::control::{self, BindError};
use crate::daemon::Running;

const TOPIC: &str = "daemon";

pub(super) async fn examine(config: &Config) -> (Point, Option<Running>) {
    let path = config.control.display();
    let error = match control::inspect(&config.control).await {
        Ok(()) => {
            let found = format!("does not run: nobody answers at {path}");
            return (Point::good(TOPIC, found), None);
        }
        Err(BindError::Live { pid, .. }) => {
            let process = pid.map(|pid| format!(" (pid {pid})")).unwrap_or_default();
            let found = format!("runs{process}, and answers at {path}");
            return (Point::good(TOPIC, found), Some(Running { pid }));
        }
        Err(error) => error,
    };
    let is_optional = config.is_control_optional && matches!(error, BindError::System { .. });
    let point = if is_optional {
        let advice = "the daemon does without, and then nobody can ask it for its status";
        Point::doubtful(TOPIC, error.to_string(), advice)
    } else {
        Point::bad(
            TOPIC,
            error.to_string(),
            "run as root, or name another place",
        )
    };
    (point, None)
}
