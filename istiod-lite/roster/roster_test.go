package roster

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// server is an API server whose answers the test gives.
type server struct {
	questions atomic.Int32
	pod       func() (*cluster.Pod, error)
	podsOn    func() ([]*cluster.Pod, error)
}

func (s *server) Pod(context.Context, cluster.Key) (*cluster.Pod, error) {
	s.questions.Add(1)
	return s.pod()
}

func (s *server) PodsOn(context.Context, string, string) ([]*cluster.Pod, error) {
	s.questions.Add(1)
	return s.podsOn()
}

func web(uid, node string) *cluster.Pod {
	return &cluster.Pod{Key: cluster.Key{Namespace: "shop", Name: "web"}, UID: uid, Node: node, ServiceAccount: "web"}
}

func upsert(p *cluster.Pod) cluster.Event {
	return cluster.Event{Kind: cluster.KindPod, Op: cluster.Upsert, Key: p.Key, Object: p}
}

func TestPod(t *testing.T) {
	s := &server{pod: func() (*cluster.Pod, error) { return nil, nil }}
	r := New(s)
	key := web("", "").Key
	if _, err := r.Pod(t.Context(), key, "1"); !errors.Is(err, ErrNotFound) || s.questions.Load() != 1 {
		t.Errorf("a pod that nobody knows: %v after %d questions, want ErrNotFound after one", err, s.questions.Load())
	}
	r.Observe(upsert(web("1", "n")))
	if p, err := r.Pod(t.Context(), key, "1"); err != nil || p.Node != "n" || s.questions.Load() != 1 {
		t.Errorf("a known pod: %v, %v after %d questions", p, err, s.questions.Load())
	}
	// The watch is behind: the pod of that name is another one by now.
	s.pod = func() (*cluster.Pod, error) { return web("2", "n"), nil }
	if p, err := r.Pod(t.Context(), key, "2"); err != nil || p.UID != "2" {
		t.Errorf("a pod that the watch has not told of: %v, %v", p, err)
	}
	if _, err := r.Pod(t.Context(), key, "3"); !errors.Is(err, ErrNotFound) {
		t.Errorf("another UID: %v, want ErrNotFound", err)
	}
	// A pod that the watch saw before it was bound to a node.
	r.Observe(upsert(web("4", "")))
	s.pod = func() (*cluster.Pod, error) { return web("4", "n2"), nil }
	if p, err := r.Pod(t.Context(), key, "4"); err != nil || p.Node != "n2" {
		t.Errorf("a pod whose node the watch has not told of: %v, %v", p, err)
	}
	s.pod = func() (*cluster.Pod, error) { return nil, errors.New("away") }
	if _, err := r.Pod(t.Context(), key, "5"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("API server away: %v, want an error that is not ErrNotFound", err)
	}
}

func TestRuns(t *testing.T) {
	s := &server{podsOn: func() ([]*cluster.Pod, error) { return nil, nil }}
	r := New(s)
	runs := func(node, ns, sa string) bool {
		t.Helper()
		ok, err := r.Runs(t.Context(), node, ns, sa)
		if err != nil {
			t.Fatal(err)
		}
		return ok
	}
	p := web("1", "n")
	r.Observe(upsert(p))
	r.Observe(upsert(p))
	if !runs("n", "shop", "web") {
		t.Error("a known pod does not count")
	}
	if runs("m", "shop", "web") || runs("n", "bank", "web") || runs("n", "shop", "other") {
		t.Error("another node, namespace or account counts")
	}
	ended := *p
	ended.Terminal = true
	r.Observe(upsert(&ended))
	if runs("n", "shop", "web") {
		t.Error("a pod that has ended counts")
	}
	r.Observe(upsert(p))
	r.Observe(cluster.Event{Kind: cluster.KindPod, Op: cluster.Delete, Key: p.Key})
	if runs("n", "shop", "web") {
		t.Error("a pod that is gone counts")
	}
	r.Observe(upsert(p))
	r.Observe(cluster.Event{Kind: cluster.KindPod, Op: cluster.Replace, Objects: []cluster.Object{}})
	if runs("n", "shop", "web") || len(r.pods) != 0 || len(r.running) != 0 {
		t.Error("a pod that a relist does not name counts")
	}
	s.podsOn = func() ([]*cluster.Pod, error) { return []*cluster.Pod{&ended}, nil }
	if runs("n", "shop", "web") {
		t.Error("a pod that has ended counts by the API server's word")
	}
	s.podsOn = func() ([]*cluster.Pod, error) { return []*cluster.Pod{&ended, p}, nil }
	if !runs("n", "shop", "web") {
		t.Error("a fresh pod does not count")
	}
}

// An answer to a question that was put before the pod was there must not refuse who asks after.
func TestOldAnswerIsNotShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := make(chan struct{})
		s := &server{}
		s.podsOn = func() ([]*cluster.Pod, error) {
			if s.questions.Load() == 1 { // put before the pod is there, and answered late
				<-first
				return nil, nil
			}
			return []*cluster.Pod{web("1", "n")}, nil
		}
		r := New(s)
		var wg sync.WaitGroup
		var late bool
		ask := func() bool { ok, _ := r.Runs(context.Background(), "n", "shop", "web"); return ok }
		wg.Go(func() { ask() }) // either answer is right for this one
		synctest.Wait()
		wg.Go(func() { late = ask() })
		synctest.Wait() // the second waits for the answer to the first
		if n := s.questions.Load(); n != 1 {
			t.Errorf("%d questions are under way, want one that is shared", n)
		}
		close(first)
		wg.Wait()
		if !late {
			t.Error("who asked after the pod was there got the answer from before")
		}
	})
}
