package netns

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/e2e/lab"
)

// usage is what a proxy holds at one moment.
type usage struct{ memory, descriptors, goroutines float64 }

func (u usage) String() string {
	return fmt.Sprintf("%.1f MiB, %.0f descriptors, %.0f goroutines", u.memory/(1<<20), u.descriptors, u.goroutines)
}

func (w *world) usageOf(p *lab.Proxy) usage {
	w.t.Helper()
	metrics := w.get(p, 15020, "/metrics")
	return usage{sum(metrics, "process_resident_memory_bytes", nil), sum(metrics, "process_open_fds", nil), sum(metrics, "go_goroutines", nil)}
}

// median is that of each value by itself.
func median(all []usage) usage {
	of := func(value func(usage) float64) float64 {
		var values []float64
		for _, u := range all {
			values = append(values, value(u))
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	return usage{of(func(u usage) float64 { return u.memory }), of(func(u usage) float64 { return u.descriptors }),
		of(func(u usage) float64 { return u.goroutines })}
}

// TestChurn has pods come and go, one after another, as endpoints of a service that is under load, each with connections of its
// own and a policy about it. No connection fails, and with AMBIT_SOAK=1, where it goes on for half an hour, the proxies hold in
// the last minutes what they held once they were warm. Metrics of a pod that is gone stay for five minutes, so that they are
// warm only after that; and pods come at a pace, since what is held for those that are gone follows from how many they were.
func TestChurn(t *testing.T) {
	const perSecond = 50
	length, warm, pace := 20*time.Second, 5*time.Second, 500*time.Millisecond
	if soak() {
		length, warm, pace = 30*time.Minute, 10*time.Minute, 3*time.Second
	}
	w := newWorld(t)
	env := []string{"AMBIT_ACCESS_LOG_SAMPLING=0", "POOL_UNUSED_RELEASE_TIMEOUT=1s"}
	n1, n2 := w.node("node1", env...), w.node("node2", env...)
	client, plain, server := w.captured(n1, "client"), w.pod(n1, "plain"), w.captured(n2, "server")
	w.listen(server, ":8080", echo)
	w.listen(client, ":8080", echo)
	s := w.serve("web", 1, true, server)
	w.settle()
	before := []usage{w.usageOf(w.proxies[0]), w.usageOf(w.proxies[1])}
	l := startLoad(client, s.at(false, 80), perSecond)
	defer l.end(t)
	beside := startLoad(plain, addr(server, false, 8080), perSecond)
	defer beside.end(t)

	var samples [2][]usage
	var times []time.Duration
	pods, told := 0, time.Duration(0)
	next := time.NewTicker(pace)
	defer next.Stop()
	for start := time.Now(); time.Since(start) < length && !t.Failed(); pods++ {
		w.churn(n2, fmt.Sprint("pod", pods), client, s, l)
		for i, p := range w.proxies {
			samples[i] = append(samples[i], w.usageOf(p))
		}
		now := time.Since(start)
		times = append(times, now)
		if now >= told {
			t.Logf("%v, pod %d: %v, %v", now.Round(time.Second), pods, samples[0][pods], samples[1][pods])
			told += time.Minute
		}
		<-next.C
	}
	t.Logf("%d pods came and went", pods)
	l.end(t)
	beside.end(t)
	for i, p := range w.proxies {
		first, _ := slices.BinarySearch(times, warm)
		measured := samples[i][min(first, len(samples[i])-1):]
		part := max(1, len(measured)/4)
		begin, end := median(measured[:part]), median(measured[len(measured)-part:])
		t.Logf("%s: once warm %v; at the end %v", p.Node.Name, begin, end)
		const flat, slack = 1.1, 10
		if soak() && (end.memory > begin.memory*flat+(2<<20) || end.descriptors > begin.descriptors*flat+slack || end.goroutines > begin.goroutines*flat+slack) {
			t.Errorf("%s holds more and more", p.Node.Name)
		}
		w.eventually("without load the proxy on "+p.Node.Name+" is back at what it began with", func() error {
			now := w.usageOf(p)
			if now.descriptors > before[i].descriptors+slack || now.goroutines > before[i].goroutines+slack {
				return fmt.Errorf("%v; it began with %v", now, before[i])
			}
			return nil
		})
	}
	w.eventually("the agent keeps the sockets of the pod that is left only", func() error {
		if n := n2.Depot.Len(); n != 3 {
			return fmt.Errorf("%d sockets", n)
		}
		return nil
	})
}

// churn is the life of one pod that serves beside others: it comes, is judged by a policy, serves, opens connections itself,
// leaves, and is gone.
func (w *world) churn(n *lab.Node, name string, client *lab.Pod, s *service, l *load) {
	w.t.Helper()
	const some = 10 // connections
	policy := deny("no-"+name, client, 9999)
	w.Control.SetAuthorizations(policy)
	r := w.replica(n, name)
	w.Control.SetAddresses(s.endpoint(r.Pod, true))
	w.more(l, some)
	kept := w.hold(client, addr(r.Pod, false, 8080))
	w.expect(r.Pod, addr(client, false, 8080), r.IPv4)
	w.Control.SetAddresses(unhealthy(s.endpoint(r.Pod, true)))
	w.more(l, some)
	r.close()
	w.more(l, some)
	if err := kept.works(); err != nil {
		w.t.Errorf("%s: a connection that was open: %v", name, err)
	}
	kept.Close()
	w.gone(r.Pod)
	w.must(r.End())
	w.Control.Remove(lab.AuthorizationType, "default/no-"+name)
}
