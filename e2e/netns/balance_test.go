package netns

import (
	"bufio"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/e2e/lab"
)

// nameItself is a server that says its pod's name, and then waits for the client's end.
func nameItself(p *lab.Pod) func(*net.TCPConn) {
	return func(c *net.TCPConn) {
		defer c.Close()
		if _, err := fmt.Fprintln(c, p.Name); err == nil {
			_, _ = c.Read(make([]byte, 1)) // the end
		}
	}
}

// openTo opens a connection and returns the name of the pod that has taken it.
func openTo(from *lab.Pod, to string) (*net.TCPConn, string, error) {
	c, err := from.Dial(to)
	if err != nil {
		return nil, "", err
	}
	c.SetDeadline(time.Now().Add(ioTimeout))
	name, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		c.Close()
		return nil, "", err
	}
	return c, strings.TrimSpace(name), nil
}

// answerer returns who takes a connection.
func (w *world) answerer(from *lab.Pod, to string) string {
	w.t.Helper()
	for name := range w.answerers(1, from, to, false) {
		return name
	}
	return ""
}

// answerers opens n connections one after another, and returns who has taken how many. They are open until the test ends if
// keep is set.
func (w *world) answerers(n int, from *lab.Pod, to string, keep bool) map[string]int {
	w.t.Helper()
	counts := map[string]int{}
	for range n {
		c, name, err := openTo(from, to)
		w.must(err)
		counts[name]++
		if keep {
			w.t.Cleanup(func() { c.Close() })
		} else {
			c.Close()
		}
	}
	return counts
}

// answeredBy fails the test unless connections go to just these pods; a few choices at random do not miss one of two.
func (w *world) answeredBy(from *lab.Pod, s *service, want ...string) {
	w.t.Helper()
	if got := slices.Sorted(maps.Keys(w.answerers(40, from, s.at(false, 80), false))); !slices.Equal(got, want) {
		w.t.Errorf("%s to %s: answered by %q, want %q", from.Name, s.host, got, want)
	}
}

// offer tells of the service, how it is balanced, and its endpoints, with what change does to them.
func (w *world) offer(s *service, balancing *workload.LoadBalancing, change func(*workload.Workload), pods ...*lab.Pod) {
	w.t.Helper()
	r := s.resource()
	r.GetService().LoadBalancing = balancing
	all := []*workload.Address{r}
	for _, p := range pods {
		e := s.endpoint(p, true)
		if change != nil {
			change(e.GetWorkload())
		}
		all = append(all, e)
	}
	w.Control.SetAddresses(all...)
	w.settle()
}

// TestBalancing has proxies balance a service over two endpoints, one on the client's node and one on another, by each of the
// rules that a service can have.
func TestBalancing(t *testing.T) {
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, second := w.captured(n1, "client"), w.captured(n1, "second")
	near, far := w.captured(n1, "near"), w.captured(n2, "far")
	for _, p := range []*lab.Pod{near, far} {
		w.listen(p, ":8080", nameItself(p))
	}
	s := w.serve("web", 1, true, near, far)
	w.settle()
	sick := func(p *lab.Pod) func(*workload.Workload) {
		return func(wl *workload.Workload) {
			if wl.GetName() == p.Name {
				wl.Status = workload.WorkloadStatus_UNHEALTHY
			}
		}
	}
	byNode := func(mode workload.LoadBalancing_Mode) *workload.LoadBalancing {
		return &workload.LoadBalancing{Mode: mode, RoutingPreference: []workload.LoadBalancing_Scope{workload.LoadBalancing_NODE}}
	}
	t.Run("any", func(t *testing.T) { w.in(t).answeredBy(client, s, "far", "near") })
	t.Run("not ready", func(t *testing.T) {
		w := w.in(t)
		w.offer(s, nil, sick(near), near, far)
		w.answeredBy(client, s, "far")
		w.offer(s, &workload.LoadBalancing{HealthPolicy: workload.LoadBalancing_ALLOW_ALL}, sick(near), near, far)
		w.answeredBy(client, s, "far", "near") // publishNotReadyAddresses
	})
	t.Run("the own node preferred", func(t *testing.T) {
		w := w.in(t)
		w.offer(s, byNode(workload.LoadBalancing_FAILOVER), nil, near, far)
		w.answeredBy(client, s, "near")
		w.offer(s, byNode(workload.LoadBalancing_FAILOVER), sick(near), near, far)
		w.answeredBy(client, s, "far")
	})
	t.Run("the own node only", func(t *testing.T) {
		w := w.in(t)
		w.offer(s, byNode(workload.LoadBalancing_STRICT), nil, near, far)
		w.answeredBy(client, s, "near")
		w.offer(s, byNode(workload.LoadBalancing_STRICT), sick(near), near, far)
		w.refused(client, s.at(false, 80))
		w.logged(w.proxies[0], "default/"+s.host, "no healthy endpoint")
	})
	t.Run("capacity", func(t *testing.T) {
		w := w.in(t)
		w.offer(s, nil, func(wl *workload.Workload) {
			wl.Capacity = wrapperspb.UInt32(1)
			if wl.GetName() == far.Name {
				wl.Capacity = wrapperspb.UInt32(9)
			}
		}, near, far)
		if got := w.answerers(50, client, s.at(false, 80), true); got["far"] < 40 {
			t.Errorf("of 50 connections nine times the capacity has got %v", got)
		}
	})
	t.Run("least loaded", func(t *testing.T) {
		w := w.in(t)
		const most = 20
		w.offer(s, nil, nil, far)
		alone := w.serve("alone", 2, true)
		w.offer(alone, nil, func(wl *workload.Workload) { // near is an endpoint of both
			wl.Services["default/"+s.host] = wl.Services["default/"+alone.host]
		}, near)
		if got := w.answerers(most, client, alone.at(false, 80), true); got["near"] != most {
			t.Fatalf("the only endpoint has got %v", got)
		}
		if got := w.answerers(most, client, s.at(false, 80), true); got["far"] < most*3/4 {
			t.Errorf("beside %d connections of another service to near, %v", most, got)
		}
	})
	t.Run("affinity", func(t *testing.T) {
		w := w.in(t)
		body, err := anypb.New(&extension.ServiceOptions{ClientIpAffinity: &extension.ClientIPAffinity{TimeoutSeconds: 600}})
		w.must(err)
		sticky := s.resource()
		sticky.GetService().Extensions = []*workload.Extension{{Name: extension.ServiceOptionsName, Config: body}}
		w.Control.SetAddresses(sticky, s.endpoint(near, true), s.endpoint(far, true))
		w.settle()
		to := s.at(false, 80)
		mine := w.answerer(client, to)
		if got := w.answerers(30, client, to, false); got[mine] != 30 {
			t.Errorf("a client that was at %s first got %v", mine, got)
		}
		others := w.answerer(second, to)
		if got := w.answerers(30, second, to, false); got[others] != 30 {
			t.Errorf("another client, which was at %s first, got %v", others, got)
		}
		left := map[string]*lab.Pod{"near": far, "far": near}[mine]
		gone := map[string]*lab.Pod{"near": near, "far": far}[mine]
		e := s.endpoint(gone, true)
		sick(gone)(e.GetWorkload())
		w.Control.SetAddresses(e)
		w.settle()
		if got := w.answerers(10, client, to, false); got[left.Name] != 10 {
			t.Errorf("without its endpoint, the client got %v, want %s", got, left.Name)
		}
	})
}
