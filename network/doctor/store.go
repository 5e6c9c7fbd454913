package doctor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/ripstop-net/ripstop/backend/planners"
	"github.com/ripstop-net/ripstop/network/status"
	"github.com/ripstop-net/ripstop/subnet"
)

func checkStore(ctx context.Context, c *Scene, s Sources) ([]Verdict, error) {
	var servers []Server
	if s.Store != nil {
		servers = s.Store.Servers(ctx)
	}
	return judgeStore(c, servers), nil
}

// judgeStore says whether the store can be read and what of it cannot be used.
func judgeStore(c *Scene, servers []Server) []Verdict {
	var out []Verdict
	switch daemonReads := c.Status != nil && c.Status.Store.State == status.Current; {
	case c.StoreErr != nil && daemonReads && !errors.Is(c.StoreErr, subnet.ErrRefused):
		remedy := "Give the flags --etcd-… that the daemon has, or --env-file with its settings."
		if c.Elsewhere != 0 {
			remedy = "The store may be reached from the daemon's network namespace alone: look from there, as the check 'daemon' says."
		}
		return append(out, Verdict{
			Severity: Note, Summary: "the store was not read from here, but the daemon follows it: what is said of peers may be a moment old",
			Evidence: []string{c.StoreErr.Error()}, Remedy: []string{remedy},
		})
	case c.StoreErr != nil:
		v := Verdict{Severity: Failure, Summary: "the store does not answer: no node can join, move or leave, and leases run out", Evidence: []string{c.StoreErr.Error()}}
		switch {
		case errors.Is(c.StoreErr, subnet.ErrRefused):
			v.Summary = "the store refuses this node: its user, its password or its certificate is not good enough"
			v.Remedy = []string{"The evidence says which right is missing, and which flag gives the user."}
		case c.Status != nil && c.Status.Lease.Held:
			v.Severity, v.Summary = Warning, "the store does not answer: nothing breaks yet, but no node can join, move or leave"
			fallthrough
		default:
			v.Remedy = []string{"Look after etcd; what it says of itself:", Command("etcdctl endpoint health --cluster")}
			if c.Status == nil && !c.storeNamed() {
				v.Remedy = append([]string{"If etcd is elsewhere than by default, give --etcd-endpoints, or --env-file with the daemon's settings."}, v.Remedy...)
			}
		}
		if c.SavedErr != nil { // Without the store a daemon can start by that alone.
			v.Evidence = append(v.Evidence, "what the daemon has saved cannot be used: "+c.SavedErr.Error())
		}
		return append(out, v)
	}
	for _, s := range servers {
		if s.Problem != "" {
			out = append(out, Verdict{
				Severity: Warning, Summary: "a server of the store does not answer; the others do", Evidence: []string{s.URL + ": " + s.Problem},
				Remedy: []string{"Look after it, or take it out of --etcd-endpoints."},
			})
		}
	}
	switch {
	case c.Listing.Config == nil:
		out = append(out, Verdict{
			Severity: Failure, Summary: "there is no network config in the store",
			Remedy: []string{
				Command(`ripstop config set '{"Network": "10.5.0.0/16"}'%s`, c.storeFlags()),
				"A daemon that waits for its first config goes on by itself then; one that has started with a config goes on with that.",
			},
		})
	default:
		out = append(out, judgeConfig(c)...)
	}
	if c.Status != nil {
		if known := c.Status.Store.Epoch; known != "" && c.Listing.Epoch != "" && known != c.Listing.Epoch && c.Status.Store.State == status.Current {
			out = append(out, Verdict{
				Severity: Warning, Summary: "the store is not the one that the daemon follows: it was wiped, put back from a backup, or is another one",
				Evidence: []string{"epoch here " + c.Listing.Epoch + ", the daemon's " + known},
				Remedy:   []string{"A daemon finds that out within half a minute. If it stays so, the two are told different --etcd-endpoints or --etcd-prefix."},
			})
		}
	}
	if len(out) > 0 {
		return out
	}
	return well("the store answers at revision %d, with a sound config and %s", c.Listing.Revision, status.Count(len(c.Listing.Leases), "record", "records"))
}

// storeNamed tells whether the endpoints that were asked are others than the default.
func (c *Scene) storeNamed() bool {
	return slices.ContainsFunc(c.Setup.StoreFlags, func(f string) bool { return strings.HasPrefix(f, "--etcd-endpoints=") })
}

// storeFlags are what a command of ripstop needs to reach the store that was looked at,
// each after a space.
func (c *Scene) storeFlags() string {
	var b strings.Builder
	for _, f := range c.Setup.StoreFlags {
		b.WriteString(" " + quoted(f))
	}
	return b.String()
}

// judgeConfig says what is wrong with the config as it is in the store.
func judgeConfig(c *Scene) []Verdict {
	cfg, err := subnet.ParseConfig(c.Listing.Config)
	if err != nil {
		return []Verdict{{
			Severity: Failure, Summary: "the network config in the store cannot be used: a node that has none from before does not come up", Evidence: []string{err.Error()},
			Remedy: []string{Command("ripstop config get%s > net.json", c.storeFlags()), "Mend it and write it back:", Command("ripstop config set net.json%s", c.storeFlags())},
		}}
	}
	var out []Verdict
	if c.Status != nil && c.Status.Store.Config != "" {
		how := "Restart the daemons one by one to apply it."
		if c.ConfigErr == nil && !planners.Compatible(c.Config.Backend, cfg.Backend) {
			how = "Restart all daemons at once: those with the old and the new one do not reach one another."
		}
		out = append(out, Verdict{
			Severity: Note, Summary: "the network config in the store is another than the one in use", Evidence: []string{c.Status.Store.Config},
			Remedy: []string{how},
		})
	}
	var lines []string
	for _, b := range cfg.Stranded(c.Listing.Leases) {
		lines = append(lines, b.String())
	}
	if len(lines) > 0 {
		out = append(out, Verdict{
			Severity: Warning, Summary: fmt.Sprintf("%s no room in the network config of the store", status.Count(len(lines), "lease has", "leases have")), Evidence: first(lines),
			Remedy: []string{"Widen the network again, or retire those nodes before they are restarted:", Command("ripstop config check%s", c.storeFlags())},
		})
	}
	return out
}

func checkClock(ctx context.Context, c *Scene, s Sources) ([]Verdict, error) {
	if s.Store == nil {
		return nil, ErrTooLittle
	}
	out := judgeClock(s.Store.Servers(ctx))
	if c.StoreErr != nil { // What refuses us, or is another, is no store to agree with.
		out = slices.DeleteFunc(out, func(v Verdict) bool { return v.Severity == OK })
	}
	return out, nil
}

// mostSkew is more than the second to which clocks are compared, and than any that is
// kept by NTP.
const mostSkew = 5 * time.Second

// judgeClock goes by the time that the store's servers tell. Leases are counted by
// the store alone, but what a node has saved, and certificates, are judged by the
// clock of the host.
func judgeClock(servers []Server) []Verdict {
	var out []Verdict
	dated := 0
	for _, s := range servers {
		if !s.Dated {
			continue
		}
		dated++
		if off := s.Behind.Abs(); off > mostSkew {
			word := "ahead of"
			if s.Behind < 0 {
				word = "behind"
			}
			out = append(out, Verdict{
				Severity: Warning, Summary: fmt.Sprintf("this host's clock is %s %s a server's of the store", off.Round(time.Second), word), Evidence: []string{s.URL},
				Remedy: []string{"Have both set by NTP:", Command("timedatectl status")},
			})
		}
	}
	switch {
	case len(out) > 0:
		return out
	case dated == 0:
		return nil // Its servers tell no time, or do not answer.
	}
	return well("clocks agree with %s of the store to a few seconds", status.Count(dated, "server", "servers"))
}

func checkCertificates(ctx context.Context, c *Scene, s Sources) ([]Verdict, error) {
	all := c.Setup.Certificates
	if s.Store != nil {
		for _, server := range s.Store.Servers(ctx) {
			if !server.Certificate.Till.IsZero() {
				all = append(all[:len(all):len(all)], server.Certificate)
			}
		}
	}
	return judgeCertificates(all, c.At), nil
}

// soon is how long before its end a certificate is spoken of; those that live for days
// only have a fifth of their life left then.
const soon = 14 * 24 * time.Hour

func judgeCertificates(all []Certificate, now time.Time) []Verdict {
	var out []Verdict
	for _, cert := range all {
		left := cert.Till.Sub(now)
		v := Verdict{
			Evidence: []string{fmt.Sprintf("%s is good from %s till %s", cert.Of, cert.From.Format(time.RFC3339), cert.Till.Format(time.RFC3339))},
			Remedy:   []string{"Renew it; the daemon reads its files anew at each connection and need not be restarted."},
		}
		switch {
		case left <= 0:
			v.Severity, v.Summary = Failure, "a certificate of the store has expired"
		case now.Before(cert.From):
			v.Severity, v.Summary = Failure, "a certificate of the store is not good yet, by this host's clock"
		case left < min(soon, cert.Till.Sub(cert.From)/5):
			v.Severity, v.Summary = Warning, "a certificate of the store expires in "+daysOf(left)
		default:
			continue
		}
		out = append(out, v)
	}
	switch {
	case len(out) > 0:
		return out
	case len(all) == 0:
		return nil
	}
	return well("%s good for a while", status.Count(len(all), "certificate is", "certificates are"))
}

// daysOf is a time in whole days, or more exact where there are few of them.
func daysOf(d time.Duration) string {
	const day = 24 * time.Hour
	if d < 2*day {
		return d.Truncate(time.Minute).String()
	}
	return fmt.Sprintf("%d days", d/day)
}
