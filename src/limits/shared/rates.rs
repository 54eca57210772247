//! Rates in Redis: the algorithm of `limits::gcra` with its state in Redis, by Redis's clock.

use std::sync::LazyLock;

use redis::Script;

use super::SharedCounters;
use crate::limits::gcra::{Decision, Rate};

/// Numbers are below 2^53, up to which Lua is exact. After a limit was lowered, what exceeds one
/// period is forgiven.
static CHECK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "local cost, period = tonumber(ARGV[1]), tonumber(ARGV[2])
         local time = redis.call('TIME')
         local now = time[1] * 1000000 + time[2]
         local arrival = math.min(tonumber(redis.call('GET', KEYS[1]) or 0), now + period)
         local after = math.max(arrival, now) + cost
         local allowed = after <= now + period
         if allowed then
             arrival = after
             local kept = math.max(math.ceil((arrival - now) / 1000), 1)
             redis.call('SET', KEYS[1], string.format('%.0f', arrival), 'PX', kept)
         end
         return {allowed and 1 or 0, math.max(arrival - now, 0), now}",
    )
});

impl SharedCounters {
    /// Counts one request for `key` of the rate `name`; returns the decision, and the time of Redis's
    /// clock in microseconds. `None`: the shared count is not known now.
    pub async fn check_rate(&self, name: &str, key: &str, rate: Rate) -> Option<(Decision, u64)> {
        let shared = self.0.as_ref()?;
        let mut check = CHECK.key(shared.name(&format!("rate:{name}"), key));
        check.arg(rate.cost_us()).arg(rate.period_us);
        let judged = shared.query(shared.timeouts.rate, async |conn| check.invoke_async(conn).await).await;
        shared.count(judged.is_some());
        judged.map(|(allowed, used, now): (bool, u64, u64)| (rate.decision(allowed, used), now))
    }
}
