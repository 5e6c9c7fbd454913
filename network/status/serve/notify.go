package serve

import (
	"fmt"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"

	"github.com/ripstop-net/ripstop/network/status"
)

// maxNotice bounds the line that systemctl status shows, in bytes.
const maxNotice = 300

// notifier tells systemd how the daemon is, by sd_notify(3). Without systemd it
// does nothing.
type notifier struct {
	log *zap.Logger
	// watchdog is within what time systemd wants to hear, 0 for not at all.
	watchdog time.Duration
	fed      time.Time
	ready    bool
	last     string
	failed   bool
}

func newNotifier(log *zap.Logger) *notifier {
	n := &notifier{log: log}
	var err error
	if n.watchdog, err = daemon.SdWatchdogEnabled(false); err != nil {
		log.Warn("systemd's watchdog is not served", zap.Error(err))
	}
	return n
}

// every is how often note is to be called.
func (n *notifier) every() time.Duration {
	if n.watchdog == 0 {
		return beatEvery
	}
	return max(n.watchdog/4, time.Millisecond)
}

// note tells what changed: that the node serves pods, once, for systemd knows no
// way back and ends who does not get there in time, so that one peer's bad record must
// not keep it from it; and in a line how it is. The watchdog is fed while the loop answers.
// It returns true when it has told of the first.
func (n *notifier) note(s status.Status, alive bool) (ready bool) {
	var lines []string
	serves := status.Serves(s.Conditions)
	if serves && !n.ready {
		lines = append(lines, daemon.SdNotifyReady)
	}
	if text := notice(s); text != n.last {
		lines = append(lines, "STATUS="+text)
		n.last = text
	}
	if n.watchdog > 0 && alive && time.Since(n.fed) >= n.watchdog/3 {
		lines = append(lines, daemon.SdNotifyWatchdog)
		n.fed = time.Now()
	}
	was := n.ready
	if len(lines) > 0 {
		n.ready = n.send(lines...) && serves || n.ready
	}
	return n.ready && !was
}

func (n *notifier) stopping() { n.send(daemon.SdNotifyStopping) }

func (n *notifier) send(lines ...string) bool {
	_, err := daemon.SdNotify(false, strings.Join(lines, "\n"))
	if err != nil && !n.failed {
		n.log.Warn("systemd cannot be told", zap.Error(err))
	}
	n.failed = err != nil
	return err == nil
}

// notice is a status in a line.
func notice(s status.Status) string {
	text := fmt.Sprintf("ready: %s, %s", joined(s.Lease.Subnets), status.Count(s.Peers.Count, "peer", "peers"))
	if !s.Ready {
		text = "not ready"
		for _, c := range s.Conditions {
			if !c.OK {
				text += ": " + c.Name + ": " + c.Reason
				break
			}
		}
	} else if s.Store.State != status.Current {
		text += ", the store is away"
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, text)
	return text[:min(len(text), maxNotice)]
}

func joined[T fmt.Stringer](all []T) string {
	var texts []string
	for _, v := range all {
		texts = append(texts, v.String())
	}
	return strings.Join(texts, ",")
}
