package main

import (
	"context"
	"runtime/debug"
	"testing"
	"testing/synctest"
	"time"
)

// TestMemoryIsGivenBack: what a burst left behind goes back to the host soon after,
// and a calm daemon collects nothing.
func TestMemoryIsGivenBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ready, ended := make(chan struct{}), make(chan error, 1)
		go func() { ended <- settleMemory(ctx, ready) }()
		synctest.Wait()
		close(ready)
		time.Sleep(lookEvery + time.Second)
		synctest.Wait()

		before := readMemory()
		const burst = 256 << 20
		garbage(burst)
		if now := readMemory(); now.heap < before.heap+burst/2 {
			t.Fatalf("%d MB after %d MB: the burst left nothing", now.heap>>20, before.heap>>20)
		}
		time.Sleep(3 * lookEvery)
		synctest.Wait()
		settled := readMemory()
		if settled.heap > before.heap+burst/8 {
			t.Errorf("%d MB after %d MB: not given back", settled.heap>>20, before.heap>>20)
		}
		time.Sleep(10 * lookEvery)
		synctest.Wait()
		if now := readMemory(); now.cycles != settled.cycles {
			t.Errorf("%d collections while nothing happened", now.cycles-settled.cycles)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// TestTrickleIsTheCollectors: what is taken bit by bit, as by a daemon in which nothing
// happens, is not given back: a collection of all costs more than it is worth.
func TestTrickleIsTheCollectors(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // It would collect for itself.
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		ready, ended := make(chan struct{}), make(chan error, 1)
		t.Setenv("GOGC", "off")
		go func() { ended <- settleMemory(ctx, ready) }()
		close(ready)
		time.Sleep(lookEvery + time.Second)
		synctest.Wait()
		before := readMemory()
		for taken := 0; taken < 4*spare; taken += trickle / 2 {
			garbage(trickle / 2)
			time.Sleep(lookEvery)
			synctest.Wait()
		}
		if now := readMemory(); now.cycles != before.cycles {
			t.Errorf("%d collections for %d MB, bit by bit", now.cycles-before.cycles, 4*spare>>20)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

// sink keeps the compiler from leaving out what nobody uses.
var sink [][]byte

func garbage(size int) {
	const each = 64 << 10
	for range size / each {
		sink = append(sink, make([]byte, each))
	}
	sink = nil
}
