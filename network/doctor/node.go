package doctor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// SceneCheck is a check of what the sources say together.
type SceneCheck struct {
	ID, Title string
	// Limit bounds the time that it may take; 0 is what those of a node have.
	Limit time.Duration
	// Anywhere tells that it looks at nothing of a network namespace's.
	Anywhere bool
	Judge    func(context.Context, *Scene, Sources) ([]Verdict, error)
}

// Node returns the checks of a node, in an order in which causes come before what
// they cause, and more after them. They share one look at the sources, which the first
// of them takes.
func Node(s Sources, more ...SceneCheck) []Check {
	scene := sync.OnceValues(func() (*Scene, error) {
		// Not the first check's ctx: the look is everybody's, and bounded by itself.
		ctx, cancel := context.WithTimeout(context.Background(), lookLimit)
		defer cancel()
		return Look(ctx, s)
	})
	var told sync.Once
	var out []Check
	for _, c := range slices.Concat(nodeChecks, more) {
		out = append(out, Check{ID: c.ID, Title: c.Title, Limit: cmp.Or(c.Limit, nodeLimit), Run: func(ctx context.Context) (verdicts []Verdict) {
			known, err := scene()
			if err == nil && known.Elsewhere != 0 {
				told.Do(func() { verdicts = judgeElsewhere(known) })
				if !c.Anywhere {
					return verdicts
				}
			}
			var found []Verdict
			if err == nil {
				found, err = c.Judge(ctx, known, s)
			}
			switch {
			case err == nil:
				verdicts = append(verdicts, found...)
			case !errors.Is(err, ErrTooLittle):
				verdicts = append(verdicts, Verdict{
					Severity: Warning, Summary: fmt.Sprintf("it could not be looked at %s", c.Title), Evidence: []string{err.Error()},
					Remedy: []string{"Run it as root, in the network namespace of the daemon."},
				})
			}
			return named(c.ID, verdicts)
		}})
	}
	return out
}

// judgeElsewhere tells of a daemon whose kernel state is not the one that is looked at.
func judgeElsewhere(c *Scene) []Verdict {
	return []Verdict{{
		Check: "daemon", Severity: Failure, Summary: fmt.Sprintf("ripstopd (process %d) is in another network namespace than this doctor, which looks at neither its devices nor its paths from here", c.Elsewhere),
		Evidence: []string{fmt.Sprintf("/proc/%d/ns/net is not /proc/self/ns/net", c.Elsewhere)},
		Remedy:   []string{"Look from there:", Command("nsenter -t %d -n %s doctor --run-dir=%s", c.Elsewhere, quoted(cmp.Or(c.Setup.Program, "ripstop")), quoted(c.Setup.RunDir))},
	}}
}

// quoted makes a word one of a shell's.
func quoted(word string) string {
	if word != "" && strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_./:=,@%+") == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// nodeChecks are those that need nothing beyond the scene and its sources.
var nodeChecks = []SceneCheck{
	{ID: "daemon", Title: "the daemon", Anywhere: true, Judge: checkDaemon},
	{ID: "kernel", Title: "what the kernel can", Judge: checkKernel},
	{ID: "store", Title: "the store", Anywhere: true, Judge: checkStore},
	{ID: "clock", Title: "the clock beside the store's", Anywhere: true, Judge: checkClock},
	{ID: "certificates", Title: "the store's certificates", Anywhere: true, Judge: checkCertificates},
	{ID: "underlay", Title: "the underlay", Judge: checkUnderlay},
	{ID: "record", Title: "the record of this node", Judge: checkRecord},
	{ID: "records", Title: "the records of others", Anywhere: true, Judge: checkRecords},
	{ID: "tunnels", Title: "other VXLAN devices", Judge: checkTunnels},
	{ID: "overlap", Title: "the host's own addresses and routes", Judge: checkOverlap},
	{ID: "device", Title: "the VXLAN devices", Judge: checkDevice},
	{ID: "entries", Title: "the entries of all peers", Judge: checkEntries},
	{ID: "forwarding", Title: "forwarding", Judge: checkForwarding},
	{ID: "rp_filter", Title: "the filter by the way back", Judge: checkPathFilter},
	{ID: "accept_ra", Title: "routers' advertisements", Judge: checkAdvertisements},
	{ID: "mtu", Title: "the MTU", Judge: checkMTU},
	{ID: "checksum", Title: "checksum offloads", Judge: checkChecksum},
	{ID: "big-tcp", Title: "packets over 64 KiB", Judge: checkSegments},
	{ID: "firewall", Title: "the firewall's own rules", Judge: checkFirewall},
	{ID: "foreign-rules", Title: "others' firewall rules", Judge: checkForeignRules},
	{ID: "guard", Title: "what the guard drops", Judge: checkGuard},
	{ID: "conntrack", Title: "the table of connections", Judge: checkConntrack},
	{ID: "subnet-file", Title: "the subnet file", Anywhere: true, Judge: checkSubnetFile},
	{ID: "cni", Title: "the files of CNI", Anywhere: true, Judge: checkCNI},
}

// nodeLimit is that of a check, which may be the one to take the look at the sources, and
// lookLimit is that of the look; it changes for tests alone.
const nodeLimit = 15 * time.Second

var lookLimit = 10 * time.Second

// ErrTooLittle is for checks for which too little is known, where another has said
// so already.
var ErrTooLittle = errors.New("too little is known")

// named fills in the check's id where a verdict has none of its own.
func named(id string, verdicts []Verdict) []Verdict {
	for i := range verdicts {
		verdicts[i].Check = cmp.Or(verdicts[i].Check, id)
	}
	return verdicts
}

// well is the one verdict of a check that has found nothing.
func well(format string, args ...any) []Verdict {
	return []Verdict{{Summary: fmt.Sprintf(format, args...)}}
}

// mostNamed bounds the lines of evidence about many alike.
const mostNamed = 10

// first bounds a list, and says how much more there is.
func first(lines []string) []string {
	if len(lines) <= mostNamed {
		return lines
	}
	return append(lines[:mostNamed:mostNamed], fmt.Sprintf("and %d more", len(lines)-mostNamed))
}
