package identity_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/identity/identitytest"
)

// fakeIssuer signs by a CA, and records each call. Its behaviour is changed under mu.
type fakeIssuer struct {
	ca *identitytest.CA

	mu       sync.Mutex
	calls    []call
	err      error         // what the next calls fail with
	gate     chan struct{} // if set, each call receives from it before it answers
	inFlight int
	maxSeen  int
}

type call struct {
	id identity.Identity
	at time.Duration // since the bubble began
}

var bubbleStart = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func (f *fakeIssuer) Issue(ctx context.Context, id identity.Identity, csr []byte) ([]string, error) {
	f.mu.Lock()
	f.calls = append(f.calls, call{id, time.Since(bubbleStart)})
	f.inFlight++
	f.maxSeen = max(f.maxSeen, f.inFlight)
	gate, err := f.gate, f.err
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.inFlight--
		f.mu.Unlock()
	}()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	return f.ca.Issue(ctx, id, csr)
}

func (f *fakeIssuer) set(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

// times returns when id was asked for.
func (f *fakeIssuer) times(id identity.Identity) []time.Duration {
	f.mu.Lock()
	defer f.mu.Unlock()
	var at []time.Duration
	for _, c := range f.calls {
		if c.id == id {
			at = append(at, c.at)
		}
	}
	return at
}

// bubble runs f with a running manager and its issuer in virtual time, and ends both.
func bubble(t *testing.T, cfg identity.ManagerConfig, f func(t *testing.T, m *identity.Manager, issuer *fakeIssuer)) {
	fakeClock(t, func(t *testing.T) {
		issuer := &fakeIssuer{ca: newCA(t)}
		cfg.Issuer, cfg.Logger = issuer, slog.New(slog.DiscardHandler)
		m := identity.NewManager(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		go func() { ended <- m.Run(ctx) }()
		f(t, m, issuer)
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

func within(t *testing.T, what string, got, want time.Duration, share float64) {
	t.Helper()
	if low, high := time.Duration(float64(want)*(1-share)), time.Duration(float64(want)*(1+share)); got < low || got > high {
		t.Errorf("%s after %v, want %v +- %v%%", what, got, want, share*100)
	}
}

func TestRenewalAtHalfLife(t *testing.T) {
	var renewed []*identity.SVID
	bubble(t, identity.ManagerConfig{OnChange: func(s *identity.SVID) { renewed = append(renewed, s) }},
		func(t *testing.T, m *identity.Manager, issuer *fakeIssuer) {
			first, err := m.SVID(t.Context(), alice)
			if err != nil {
				t.Fatal(err)
			}
			if again, err := m.SVID(t.Context(), alice); again != first || err != nil {
				t.Errorf("second call: %p, %v; want the same %p", again, err, first)
			}
			time.Sleep(14 * time.Hour)
			synctest.Wait()
			at := issuer.times(alice)
			if len(at) != 2 {
				t.Fatalf("asked at %v, want twice", at)
			}
			within(t, "renewal", at[1]-at[0], 12*time.Hour, 0.1)
			second, err := m.SVID(t.Context(), alice)
			if err != nil || second == first || !second.NotAfter.After(first.NotAfter) {
				t.Errorf("after renewal: %v, expires %v, before %v", err, second.NotAfter, first.NotAfter)
			}
			if len(renewed) != 2 || renewed[1] != second {
				t.Errorf("OnChange was called %d times", len(renewed))
			}
		})
}

// TestOldIsKept: while renewals fail, the old certificate is served until it expires; then calls wait.
func TestOldIsKept(t *testing.T) {
	bubble(t, identity.ManagerConfig{}, func(t *testing.T, m *identity.Manager, issuer *fakeIssuer) {
		first, err := m.SVID(t.Context(), alice)
		if err != nil {
			t.Fatal(err)
		}
		issuer.set(status.Error(codes.Unavailable, "CA is away"))
		time.Sleep(24*time.Hour - time.Minute)
		if s, err := m.SVID(t.Context(), alice); s != first || err != nil {
			t.Errorf("before expiry: %v", err)
		}
		if s := m.Snapshot(); len(s) != 1 || s[0].State != identity.StateAvailable || s[0].Err == nil {
			t.Errorf("snapshot %+v", s)
		}
		time.Sleep(2 * time.Minute)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		s, err := m.SVID(ctx, alice)
		if s != nil || !errors.Is(err, context.DeadlineExceeded) || status.Code(err) != codes.Unavailable {
			t.Errorf("after expiry: %v, %v", s, err)
		}
		if s := m.Snapshot(); s[0].State != identity.StateUnavailable || s[0].SVID != first {
			t.Errorf("snapshot %+v", s)
		}
		issuer.set(nil)
		if s, err := m.SVID(t.Context(), alice); err != nil || s == first {
			t.Errorf("when the CA is back: %v", err)
		}
	})
}

func TestBackOff(t *testing.T) {
	bubble(t, identity.ManagerConfig{}, func(t *testing.T, m *identity.Manager, issuer *fakeIssuer) {
		issuer.set(status.Error(codes.PermissionDenied, "not on your node"))
		m.Prefetch(alice)
		time.Sleep(20 * time.Minute)
		synctest.Wait()
		at := issuer.times(alice)
		want := 500 * time.Millisecond
		if len(at) < 12 {
			t.Fatalf("asked %d times: %v", len(at), at)
		}
		for i := range len(at) - 1 {
			within(t, fmt.Sprintf("attempt %d", i+2), at[i+1]-at[i], want, 0.2)
			want = min(2*want, 150*time.Second)
		}
		if s := m.Snapshot(); s[0].State != identity.StateUnavailable || s[0].Failures != len(at) {
			t.Errorf("snapshot %+v, %d attempts", s, len(at))
		}
	})
}

// TestWaitedIsAskedSooner: an identity that has failed for long is asked for again within seconds once somebody waits.
func TestWaitedIsAskedSooner(t *testing.T) {
	bubble(t, identity.ManagerConfig{}, func(t *testing.T, m *identity.Manager, issuer *fakeIssuer) {
		issuer.set(status.Error(codes.PermissionDenied, "not on your node"))
		m.Prefetch(alice)
		time.Sleep(time.Hour)
		synctest.Wait()
		issuer.set(nil)
		start := time.Now()
		if _, err := m.SVID(t.Context(), alice); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > 6*time.Second {
			t.Errorf("waited %v", d)
		}
	})
}

// TestWaitedIsAskedOften: while somebody waits, the pauses between failures stay short.
func TestWaitedIsAskedOften(t *testing.T) {
	bubble(t, identity.ManagerConfig{}, func(t *testing.T, m *identity.Manager, issuer *fakeIssuer) {
		issuer.set(status.Error(codes.PermissionDenied, "not on your node"))
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if _, err := m.SVID(ctx, alice); status.Code(err) != codes.PermissionDenied || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v", err)
		}
		at := issuer.times(alice)
		for i := range len(at) - 1 {
			if pause := at[i+1] - at[i]; pause > 6*time.Second {
				t.Errorf("pause %d is %v", i, pause)
			}
		}
		if len(at) < 100 {
			t.Errorf("%d attempts", len(at))
		}
	})
}

// TestCAIsBack: one answer brings forward all whose request did not reach the CA, and not those that it refused.
func TestCAIsBack(t *testing.T) {
	for code, want := range map[codes.Code]identity.State{
		codes.Unavailable:      identity.StateAvailable,
		codes.DeadlineExceeded: identity.StateAvailable,
		codes.PermissionDenied: identity.StateUnavailable,
	} {
		bubble(t, identity.ManagerConfig{}, func(t *testing.T, m *identity.Manager, issuer *fakeIssuer) {
			issuer.set(status.Error(code, "no"))
			m.Prefetch(alice)
			for { // until its next attempt is far off
				time.Sleep(time.Second)
				synctest.Wait()
				if s := m.Snapshot(); time.Until(s[0].Next) > time.Minute {
					break
				}
			}
			issuer.set(nil)
			if _, err := m.SVID(t.Context(), bob); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			if s := m.Snapshot(); s[0].Identity != alice || s[0].State != want {
				t.Errorf("after %v: %v is %v, want %v", code, s[0].Identity, s[0].State, want)
			}
		})
	}
}

func TestSingleFlight(t *testing.T) {
	bubble(t, identity.ManagerConfig{}, func(t *testing.T, m *identity.Manager, issuer *fakeIssuer) {
		issuer.gate = make(chan struct{})
		var calls sync.WaitGroup
		got := make([]*identity.SVID, 20)
		for i := range got {
			calls.Go(func() {
				var err error
				if got[i], err = m.SVID(t.Context(), alice); err != nil {
					t.Errorf("call %d: %v", i, err)
				}
			})
		}
		synctest.Wait()
		close(issuer.gate)
		calls.Wait()
		if n := len(issuer.times(alice)); n != 1 {
			t.Errorf("%d requests for %d calls", n, len(got))
		}
		for _, s := range got {
			if s != got[0] {
				t.Error("calls got different certificates")
			}
		}
	})
}

// TestConcurrencyAndPriority: no more requests than allowed are in flight, and what is waited for overtakes what was
// prefetched.
func TestConcurrencyAndPriority(t *testing.T) {
	bubble(t, identity.ManagerConfig{Concurrency: 3}, func(t *testing.T, m *identity.Manager, issuer *fakeIssuer) {
		issuer.gate = make(chan struct{})
		for i := range 20 {
			m.Prefetch(identity.Identity{TrustDomain: "td", Namespace: "n", ServiceAccount: fmt.Sprint(i)})
		}
		time.Sleep(time.Second) // the others are due for longer
		done := make(chan error)
		go func() {
			_, err := m.SVID(t.Context(), alice)
			done <- err
		}()
		synctest.Wait()
		issuer.gate <- struct{}{} // one of the three ends, and makes room
		synctest.Wait()
		if len(issuer.calls) != 4 || issuer.calls[3].id != alice {
			t.Errorf("calls %v, want alice as the fourth", issuer.calls)
		}
		close(issuer.gate)
		if err := <-done; err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if len(issuer.calls) != 21 || issuer.maxSeen != 3 {
			t.Errorf("%d calls, %d at once", len(issuer.calls), issuer.maxSeen)
		}
	})
}

// TestDefaultConcurrency: eight.
func TestDefaultConcurrency(t *testing.T) {
	bubble(t, identity.ManagerConfig{}, func(t *testing.T, m *identity.Manager, issuer *fakeIssuer) {
		issuer.gate = make(chan struct{})
		for i := range 20 {
			m.Prefetch(identity.Identity{TrustDomain: "td", Namespace: "n", ServiceAccount: fmt.Sprint(i)})
		}
		synctest.Wait()
		if issuer.inFlight != 8 {
			t.Errorf("%d requests in flight", issuer.inFlight)
		}
		close(issuer.gate)
	})
}

// TestStuckCA: a request that gets no answer ends, and makes room for the next.
func TestStuckCA(t *testing.T) {
	bubble(t, identity.ManagerConfig{Concurrency: 1}, func(t *testing.T, m *identity.Manager, issuer *fakeIssuer) {
		issuer.gate = make(chan struct{})
		m.Prefetch(bob)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second)
		defer cancel()
		_, err := m.SVID(ctx, alice)
		if at := issuer.times(alice); !errors.Is(err, context.DeadlineExceeded) || len(at) == 0 {
			t.Errorf("%v, asked at %v", err, at)
		}
	})
}

func TestForget(t *testing.T) {
	bubble(t, identity.ManagerConfig{}, func(t *testing.T, m *identity.Manager, issuer *fakeIssuer) {
		issuer.gate = make(chan struct{})
		done := make(chan error)
		go func() {
			_, err := m.SVID(t.Context(), alice)
			done <- err
		}()
		synctest.Wait()
		m.Forget(alice)
		if err := <-done; !errors.Is(err, identity.ErrForgotten) {
			t.Errorf("the call that waited: %v", err)
		}
		close(issuer.gate)
		time.Sleep(48 * time.Hour)
		synctest.Wait()
		if n := len(issuer.times(alice)); n != 1 || len(m.Snapshot()) != 0 {
			t.Errorf("asked %d times, snapshot %v", n, m.Snapshot())
		}
		if _, err := m.SVID(t.Context(), alice); err != nil {
			t.Errorf("asked for again: %v", err)
		}
	})
}

func TestSVIDErrors(t *testing.T) {
	fakeClock(t, func(t *testing.T) {
		m := identity.NewManager(identity.ManagerConfig{Issuer: &fakeIssuer{ca: newCA(t)}, Logger: slog.New(slog.DiscardHandler)})
		if _, err := m.SVID(t.Context(), identity.Identity{}); err == nil {
			t.Error("the zero identity got a certificate")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := m.SVID(ctx, alice); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("before Run: %v", err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := m.Run(ended); err != nil {
			t.Error(err)
		}
		if _, err := m.SVID(t.Context(), bob); !errors.Is(err, identity.ErrStopped) {
			t.Errorf("after Run: %v", err)
		}
	})
}

func BenchmarkSVID(b *testing.B) {
	m := identity.NewManager(identity.ManagerConfig{Issuer: &fakeIssuer{ca: newCA(b)}, Logger: slog.New(slog.DiscardHandler)})
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error)
	go func() { ended <- m.Run(ctx) }()
	if _, err := m.SVID(ctx, alice); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := m.SVID(ctx, alice); err != nil {
				b.Error(err)
			}
		}
	})
	cancel()
	<-ended
}
