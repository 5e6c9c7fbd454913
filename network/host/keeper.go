package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sync/errgroup"

	"github.com/ripstop-net/ripstop/subnet"
)

// Links are the host's network interfaces, as far as settings go.
type Links interface {
	// NotForwarding lists those that do not forward IPv4 packets.
	NotForwarding(ctx context.Context) ([]string, error)
	// Forward lets one forward IPv4 packets, where /proc/sys cannot be written.
	Forward(ctx context.Context, link string) error
	// Advertised lists those with an IPv6 default route that a router advertised.
	Advertised(ctx context.Context) ([]string, error)
	// WatchSettings calls changed when settings may have changed, until ctx ends.
	WatchSettings(ctx context.Context, changed func()) error
}

// Keeper sees to the host's settings. Check, Set and Keep come in this order, one
// after another.
type Keeper struct {
	settings Settings
	links    Links
	log      *zap.Logger
	needs    Needs
	// moved has the interfaces by which packets leave the host since needs had others.
	moved chan subnet.PerFamily[string]
	// heard are the links that hear routers though the host forwards.
	heard map[string]bool
	// overNetlink says that it was told that links are set one by one.
	overNetlink bool
	// What tests make shorter.
	rest, pause, calm time.Duration
}

// What Keep waits for.
const (
	// checkEvery is for what the kernel does not announce, as accept_ra.
	checkEvery = time.Minute
	// shortestRest is between two looks: a pod that comes has many settings.
	shortestRest = 100 * time.Millisecond
	// After a setting was put back there is a pause, which doubles up to
	// longestPause until none was for calmAfter.
	longestPause = 5 * time.Second
	calmAfter    = 30 * time.Second
	// mostSaid are lines about settings that are put back again and again.
	mostSaid = 3
)

// NewKeeper joins its parts. Nothing happens before Check.
func NewKeeper(settings Settings, links Links, log *zap.Logger) *Keeper {
	return &Keeper{settings: settings, links: links, log: log, moved: make(chan subnet.PerFamily[string], 1), heard: map[string]bool{}, rest: shortestRest, pause: longestPause, calm: calmAfter}
}

// Check tells why the host's settings cannot be made what is needed, and what to
// do; that wraps [ErrSetting]. notes are about what may be in the way one day. It
// changes nothing.
func (k *Keeper) Check(ctx context.Context, needs Needs) (notes []string, err error) {
	k.needs = needs
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

// Set makes the settings what is needed and says what it changed.
func (k *Keeper) Set(ctx context.Context) error {
	_, err := k.set(ctx, func(what string, from int, s setting) {
		k.log.Info("host setting changed", zap.String("setting", name(s.key)), zap.Int("from", from), zap.Int("to", s.value), zap.String("why", what))
	})
	return err
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
	pause, times, said := k.rest, 0, ""
	for {
		select {
		case <-ctx.Done():
			return
		case k.needs.Underlay = <-k.moved:
		case <-kick:
		case <-tick.C:
		}
		if !last.IsZero() && time.Since(last) > k.calm {
			pause, times = k.rest, 0
		}
		changed, err := k.set(ctx, func(_ string, from int, s setting) {
			switch {
			case times < mostSaid:
				k.log.Warn("host setting put back that an outside hand had changed", zap.String("setting", name(s.key)), zap.Int("from", from), zap.Int("to", s.value))
			case times == mostSaid:
				k.log.Warn("an outside hand changes a host setting again and again: it is put back each time, and no more is said", zap.String("setting", name(s.key)))
			}
			times++
		})
		wait := k.rest
		if changed {
			last = time.Now()
			wait = pause
			pause = min(2*pause, k.pause)
		}
		switch {
		case err == nil:
			said = ""
		case ctx.Err() == nil && err.Error() != said:
			said = err.Error()
			k.log.Error("host setting cannot be put back", zap.Error(err))
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// set carries the plan out, and tells of each setting that it changed. Where one
// fails it goes no further: what comes after may cost the host something without.
func (k *Keeper) set(ctx context.Context, tell func(what string, from int, s setting)) (changed bool, err error) {
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
		if err == nil {
			err = k.settings.Set(s.key, s.value)
		}
		switch {
		case err != nil && s.key == forwardingKey[subnet.V4] && readOnly(err):
			if err := k.setEach(ctx); err != nil {
				return changed, err
			}
			continue
		case err != nil:
			return changed, fmt.Errorf("%w: %s cannot be set (%w): run on the host: sysctl -w %s", ErrSetting, name(s.key), err, s)
		}
		if s.link != "" {
			k.heard[s.link] = true
		}
		changed = true
		tell(why(s), from, s)
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
// also those that come, which announce themselves by their settings.
func (k *Keeper) setEach(ctx context.Context) error {
	links, err := k.links.NotForwarding(ctx)
	if err != nil {
		return err
	}
	for _, link := range links {
		if err := k.links.Forward(ctx, link); err != nil {
			return err
		}
	}
	if len(links) > 0 && !k.overNetlink {
		k.overNetlink = true
		k.log.Info("host settings changed over netlink, for /proc/sys is read-only: each interface forwards IPv4 packets, as with net.ipv4.ip_forward=1; those that come will, too",
			zap.Strings("interfaces", links[:min(len(links), mostNamed)]))
	}
	return nil
}

// mostNamed bounds the interfaces that a line names.
const mostNamed = 10

// read reads how things stand. Which links have a route by advertisement is asked
// only where the host is about to be made to forward.
func (k *Keeper) read(ctx context.Context) (reading, error) {
	r := reading{acceptRA: map[string]int{}}
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
		if errors.Is(err, fs.ErrNotExist) {
			continue // It has gone, or has no IPv6.
		}
		if err != nil {
			return r, err
		}
		r.acceptRA[link] = v
	}
	return r, nil
}
