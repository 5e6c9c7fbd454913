package path

import (
	"context"
	"errors"
	"sync"
	"time"
)

// sizer sends packets of a size by the overlay of a target.
type sizer struct {
	t     Target
	m     Means
	known knownMTU
}

// passing says whether a packet of a size passes.
type passing func(ctx context.Context, size int) bool

// try sends several of a size, all of which are lost where the size is.
func (z *sizer) try(ask func(ctx context.Context, size int) error) passing {
	return func(ctx context.Context, size int) bool {
		errs := make(chan error, sizeTries)
		for range sizeTries {
			go func() { errs <- ask(ctx, size) }()
		}
		passed := false
		for range sizeTries {
			err := <-errs
			passed = passed || err == nil
			z.known.learn(err, size)
		}
		return passed
	}
}

// ping is of packets that go and come back in one size.
func (z *sizer) ping(by Layer) passing {
	return z.try(func(ctx context.Context, size int) error { _, err := z.m.Ping(ctx, by, size); return err })
}

// out is of large requests by the overlay.
func (z *sizer) out() passing {
	return z.try(func(ctx context.Context, size int) error {
		_, _, err := z.m.Echo(ctx, Overlay, Overlay, size, 0)
		return err
	})
}

// back is of large answers by the overlay. The request of one is as large: by the
// overlay it may be lost itself, by the underlay it is split if need be.
func (z *sizer) back(by Layer) passing {
	return z.try(func(ctx context.Context, size int) error {
		request := 0
		if by == Overlay {
			request = size
		}
		_, _, err := z.m.Echo(ctx, by, Overlay, request, size)
		return err
	})
}

// full tries packets of the full size, all ways at once. What does not take them is said
// to take the smallest, until [narrow] finds out more.
func full(ctx context.Context, t Target, m Means, s *Seen) {
	if t.MTU == 0 {
		return
	}
	z := &sizer{t: t, m: m}
	var out, back, split, round bool
	var all sync.WaitGroup
	ask := func(to *bool, passes passing) { all.Go(func() { *to = passes(ctx, t.MTU) }) }
	echoes := s.Echoes[Overlay][Overlay].Reply == Answered
	splits := s.Echoes[Underlay][Overlay].Reply == Answered
	switch {
	case echoes:
		ask(&out, z.out())
		ask(&back, z.back(Overlay))
		if splits {
			ask(&split, z.back(Underlay))
		}
	case s.Pings[Overlay].Reply == Answered:
		ask(&round, z.ping(Overlay))
	}
	all.Wait()
	size := func(passed bool) int {
		if passed {
			return t.MTU
		}
		return min(smallest, t.MTU-1)
	}
	switch {
	case echoes:
		s.Largest[Out] = size(out)
		switch {
		case out:
			s.Largest[Back] = size(back)
		case splits:
			s.Largest[Back] = size(split)
		} // Else it may be the request that is lost.
	case s.Pings[Overlay].Reply == Answered:
		s.Round = size(round)
	}
	if mtu := z.known.least(); mtu != 0 && mtu < t.MTU {
		s.Known = mtu
	}
}

// short tells whether something does not take packets of the full size, and it is not
// this host's own doing.
func (s *Seen) short(t Target) bool {
	less := func(n int) bool { return n != 0 && n < t.MTU }
	return s.Known == 0 && (less(s.Round) || less(s.Largest[Out]) || less(s.Largest[Back]))
}

// narrow finds the largest packets that pass where those of the full size do not, of all
// ways at once, and of the underlay beside.
func narrow(ctx context.Context, t Target, m Means, s *Seen) {
	z := &sizer{t: t, m: m}
	var all sync.WaitGroup
	find := func(to *int, most int, passes passing) { all.Go(func() { *to = largest(ctx, most, passes) }) }
	by := Overlay
	if s.Largest[Out] < t.MTU {
		by = Underlay
	}
	if n := s.Largest[Out]; n != 0 && n < t.MTU {
		find(&s.Largest[Out], t.MTU, z.out())
	}
	if n := s.Largest[Back]; n != 0 && n < t.MTU {
		find(&s.Largest[Back], t.MTU, z.back(by))
	}
	if n := s.Round; n != 0 && n < t.MTU {
		find(&s.Round, t.MTU, z.ping(Overlay))
	}
	if s.Pings[Underlay].Reply == Answered {
		find(&s.Carrier, t.MTU+t.Overhead, z.ping(Underlay))
	}
	all.Wait()
}

// knownMTU is what the kernel gave as a reason not to send.
type knownMTU struct {
	mu  sync.Mutex
	mtu int
}

// learn takes in an error that says that a packet is too large for this host.
func (k *knownMTU) learn(err error, size int) {
	var large *TooLargeError
	if !errors.As(err, &large) {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	mtu := large.MTU
	if mtu == 0 {
		mtu = size - 1
	}
	if k.mtu == 0 || mtu < k.mtu {
		k.mtu = mtu
	}
}

func (k *knownMTU) least() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mtu
}

// smallest is what is not tried: small packets pass.
const smallest = 128

// atOnce is how many sizes are tried at the same time: each that is lost costs the time
// of an answer.
const atOnce = 12

// largest finds the largest size from smallest to most, in bytes, that passes, 0 where
// that cannot be told: what is lost is lost whatever its size. If ctx ends before, it is
// the largest that is known to.
func largest(ctx context.Context, most int, passes passing) int {
	low, high := min(smallest, most-1), most // low passes, high does not, as far as is known.
	for first := true; high-low > 1; first = false {
		var sizes []int
		for i := 1; i <= atOnce; i++ {
			if size := low + (high-low)*i/(atOnce+1); size > low && (len(sizes) == 0 || size > sizes[len(sizes)-1]) {
				sizes = append(sizes, size)
			}
		}
		if len(sizes) == 0 {
			sizes = []int{low + 1}
		}
		if first {
			sizes = append(sizes, most)
		}
		passed := make([]bool, len(sizes))
		var all sync.WaitGroup
		for i, size := range sizes {
			all.Go(func() { passed[i] = passes(ctx, size) })
		}
		all.Wait()
		if ctx.Err() != nil {
			return low // What was lost may have been cut off.
		}
		for i, size := range sizes {
			if !passed[i] {
				high = size
				break
			}
			low = size
		}
	}
	if low == most {
		return most
	}
	// What was lost for another reason, as while the peer's daemon was restarted, passes
	// by now, or what passed is lost by now.
	var all sync.WaitGroup
	var full, found bool
	all.Go(func() { full = passes(ctx, most) })
	all.Go(func() { found = passes(ctx, low) })
	all.Wait()
	switch {
	case full:
		return most
	case found || ctx.Err() != nil:
		return low
	}
	return 0
}

// answerWithin is how long an answer to one request may take.
const answerWithin = 700 * time.Millisecond
