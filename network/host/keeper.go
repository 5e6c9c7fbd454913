package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/ripstop-net/ripstop/backend"
	"github.com/ripstop-net/ripstop/subnet"
)

// Links are the host's network interfaces, as far as settings go.
type Links interface {
	// Links lists them, but for our own devices and the loopback.
	Links(ctx context.Context) ([]backend.Link, error)
	// Forward lets one forward IPv4 packets, where /proc/sys cannot be written.
	Forward(ctx context.Context, link string) error
	// Advertised lists those with an IPv6 default route that a router advertised.
	Advertised(ctx context.Context) ([]string, error)
	// WatchSettings calls changed when settings may have changed, or what Links
	// lists, until ctx ends.
	WatchSettings(ctx context.Context, changed func()) error
}

// Keeper sees to the host's settings. Check, Set and Keep come in this order, one
// after another.
type Keeper struct {
	settings Settings
	links    Links
	mark     Mark
	log      *zap.Logger
	needs    Needs
	// moved has the interfaces by which packets leave the host since needs had others.
	moved chan subnet.PerFamily[string]
	// heard are the links that hear routers though the host forwards, and ours tells
	// that it does so because of a keeper.
	heard map[string]bool
	ours  bool
	// overNetlink says that links are set one by one, and that this was told; given has
	// those to which that was done lately, and when.
	overNetlink bool
	given       map[string]time.Time
	record      record
	// What tests make shorter.
	rest, pause, calm time.Duration
}

// What Keep waits for.
const (
	// checkEvery is for what the kernel does not announce, as accept_ra.
	checkEvery = time.Minute
	// shortestRest is between two looks: a pod that comes has many settings.
	shortestRest = 100 * time.Millisecond
	// lookShare bounds the time that looking takes to one part of so many: a host may
	// have thousands of interfaces.
	lookShare = 20
	// After a setting was put back there is a pause, which doubles up to
	// longestPause until none was for calmAfter.
	longestPause = 5 * time.Second
	calmAfter    = 30 * time.Second
	// mostSaid are the lines about a setting that is put back. One more, and an outside
	// hand is said to fight for it.
	mostSaid = 3
	// mostHeard bounds the links that are remembered after they have gone, for they
	// may come again.
	mostHeard = 64
)

// NewKeeper joins its parts. Nothing happens before Check.
func NewKeeper(settings Settings, links Links, mark Mark, log *zap.Logger) *Keeper {
	return &Keeper{settings: settings, links: links, mark: mark, log: log, moved: make(chan subnet.PerFamily[string], 1), heard: map[string]bool{}, given: map[string]time.Time{}, rest: shortestRest, pause: longestPause, calm: calmAfter}
}

// Check tells why the host's settings cannot be made what is needed, and what to
// do; that wraps [ErrSetting]. notes are about what may be in the way one day. It
// changes nothing.
func (k *Keeper) Check(ctx context.Context, needs Needs) (notes []string, err error) {
	k.needs = needs
	if k.ours, err = k.mark.There(); err != nil {
		return nil, err
	}
	r, err := k.read(ctx)
	if err != nil {
		return nil, err
	}
	if err := refusal(plan(needs, r, k.heard), k.settings.Writable); err != nil {
		return nil, err
	}
	if note := strict(needs, k.settings.Get); note != "" {
		notes = append(notes, note)
	}
	return notes, nil
}

// Strict is [Strict] by the host's settings of now.
func (k *Keeper) Strict(link string) bool { return Strict(link, k.settings.Get) }

// Set makes the settings what is needed and says what it changed.
func (k *Keeper) Set(ctx context.Context) error {
	_, err := k.set(ctx, func(_ bool, from int, s setting) { k.tell(from, s) })
	return err
}

func (k *Keeper) tell(from int, s setting) {
	k.log.Info("host setting changed", zap.String("setting", name(s.key)), zap.Int("from", from), zap.Int("to", s.value), zap.String("why", why(s)))
}

// Move says by which interfaces packets leave the host from now on. Keep sees to their
// settings then. It is for one goroutine.
func (k *Keeper) Move(underlay subnet.PerFamily[string]) {
	select {
	case <-k.moved:
	default:
	}
	k.moved <- underlay // There is room: nobody else puts anything there.
}

// Keep puts the settings back where a hand changes them, until ctx ends; then it
// returns nil.
func (k *Keeper) Keep(ctx context.Context) error {
	kick := make(chan struct{}, 1)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error {
		err := k.links.WatchSettings(ctx, func() {
			select {
			case kick <- struct{}{}:
			default:
			}
		})
		if err != nil && ctx.Err() == nil {
			k.log.Warn("changes of host settings are not announced: they are looked at now and then", zap.Duration("every", checkEvery), zap.Error(err))
		}
		return nil
	})
	group.Go(func() error {
		k.keep(ctx, kick)
		return nil
	})
	return group.Wait()
}

func (k *Keeper) keep(ctx context.Context, kick <-chan struct{}) {
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	var last time.Time // When one was put back last.
	pause, came, said := k.rest, 0, ""
	var again <-chan time.Time // After a failure, which nothing else may announce the end of.
	for {
		select {
		case <-ctx.Done():
			return
		case k.needs.Underlay = <-k.moved:
		case <-kick:
		case <-tick.C:
		case <-again:
		}
		again = nil
		if !last.IsZero() && time.Since(last) > k.calm {
			pause, came = k.rest, 0
		}
		began := time.Now()
		changed, err := k.set(ctx, func(first bool, from int, s setting) {
			if first { // An interface has come: no hand has undone anything.
				if came++; came <= mostNamed {
					k.tell(from, s)
				}
				return
			}
			switch row := k.record.restored(s.key, k.calm); {
			case row <= mostSaid:
				k.log.Warn("host setting put back that an outside hand had changed", zap.String("setting", name(s.key)), zap.Int("from", from), zap.Int("to", s.value))
			case row == mostSaid+1:
				k.log.Warn("an outside hand changes a host setting again and again: it is put back each time, and no more is said", zap.String("setting", name(s.key)))
			}
		})
		wait := min(max(k.rest, lookShare*time.Since(began)), longestPause)
		if changed {
			last = time.Now()
			wait = pause
			pause = min(2*pause, k.pause)
		}
		switch {
		case err == nil && said != "":
			said = ""
			k.log.Info("host settings are right again")
		case err != nil && ctx.Err() == nil && err.Error() != said:
			said = err.Error()
			k.log.Error("host setting cannot be put back: tried again", zap.Error(err))
		}
		if err != nil {
			again = time.After(k.pause)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// set carries the plan out, and tells of each setting that it changed, and whether it
// is that of a link for the first time. Where one fails it goes no further: what comes
// after may cost the host something without.
func (k *Keeper) set(ctx context.Context, tell func(first bool, from int, s setting)) (changed bool, err error) {
	defer func() {
		if ctx.Err() == nil {
			k.record.looked(k.needs, k.heard, k.overNetlink, err)
		}
	}()
	r, err := k.read(ctx)
	if err != nil {
		return false, err
	}
	for link, v := range r.acceptRA {
		if v == heedsAlways {
			k.heard[link] = true
		}
	}
	for _, s := range plan(k.needs, r, k.heard) {
		from, err := k.settings.Get(s.key)
		if err == nil && s.key == forwardingKey[subnet.V6] && !k.ours {
			// Before it is so: after a crash it is known all the same.
			if err := k.mark.Make(); err != nil {
				return changed, err
			}
			k.ours = true
		}
		if err == nil {
			err = k.settings.Set(s.key, s.value)
		}
		switch {
		case err != nil && s.link != "" && errors.Is(err, fs.ErrNotExist):
			continue // It has gone meanwhile.
		case err != nil && s.key == forwardingKey[subnet.V4] && readOnly(err):
			again, err := k.setEach(ctx)
			if err != nil {
				return changed, err
			}
			if again {
				changed = true
				tell(false, from, s)
			}
			continue
		case err != nil:
			return changed, fmt.Errorf("%w: %s cannot be set (%w): run on the host: sysctl -w %s", ErrSetting, name(s.key), err, s)
		}
		first := s.link != "" && !k.heard[s.link]
		if s.link != "" {
			k.heard[s.link] = true
		}
		changed = true
		tell(first, from, s)
	}
	return changed, nil
}

func why(s setting) string {
	if s.link != "" {
		return "the host goes on to hear its routers while it forwards"
	}
	return "pods' packets are forwarded"
}

// setEach does over netlink what ip_forward does: it lets each interface forward,
// also those that come, which announce themselves by their settings. again tells that
// this was done to one of them a while ago, and that another hand has undone it.
func (k *Keeper) setEach(ctx context.Context) (again bool, err error) {
	all, err := k.links.Links(ctx)
	if err != nil {
		return false, err
	}
	now := time.Now()
	maps.DeleteFunc(k.given, func(_ string, at time.Time) bool { return now.Sub(at) > k.calm })
	var links []string
	for _, l := range all {
		if !l.NoForwarding {
			continue
		}
		if err := k.links.Forward(ctx, l.Name); err != nil {
			return again, err
		}
		if _, ok := k.given[l.Name]; ok {
			again = true
		}
		k.given[l.Name] = now
		links = append(links, l.Name)
	}
	if len(links) > 0 && !k.overNetlink {
		k.log.Info("host settings changed over netlink, for /proc/sys is read-only: each interface forwards IPv4 packets, as with net.ipv4.ip_forward=1; those that come will, too",
			zap.Strings("interfaces", links[:min(len(links), mostNamed)]))
	}
	k.overNetlink = true
	return again, nil
}

// mostNamed bounds the interfaces that a line names.
const mostNamed = 10

// read reads how things stand. Which links may hear routers is asked where the host is
// about to be made to forward, or was made to.
func (k *Keeper) read(ctx context.Context) (reading, error) {
	r := reading{acceptRA: map[string]int{}, ours: k.ours}
	for _, f := range k.needs.Families {
		on, err := k.settings.Get(forwardingKey[f])
		if err != nil {
			return r, missing(f, err)
		}
		r.forwards[f] = on != 0
	}
	if !slices.Contains(k.needs.Families, subnet.V6) {
		return r, nil
	}
	links := []string{k.needs.Underlay[subnet.V6]}
	if !r.forwards[subnet.V6] || k.ours {
		all, err := k.links.Links(ctx)
		if err != nil {
			return r, err
		}
		links = append(links, outward(k.needs, all)...)
	}
	if !r.forwards[subnet.V6] {
		more, err := k.links.Advertised(ctx)
		if err != nil {
			return r, err
		}
		links = append(links, more...)
	}
	for link := range k.heard {
		links = append(links, link)
	}
	for _, link := range links {
		v, err := k.settings.Get(acceptRA(link))
		if errors.Is(err, fs.ErrNotExist) { // It has gone, or has no IPv6.
			if len(k.heard) > mostHeard {
				delete(k.heard, link)
			}
			continue
		}
		if err != nil {
			return r, err
		}
		r.acceptRA[link] = v
	}
	return r, nil
}
