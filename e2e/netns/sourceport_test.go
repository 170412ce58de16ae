package netns

import (
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ambit-mesh/ambit/cni/rules"
)

// TestSourcePorts holds plain connections of a client to an application while the client opens tunnelled ones to the same
// port. The node proxy dials the application under the client's address, so both have the same three of four addresses; if
// it chose a port of a plain one, connection tracking would take the two for one. None may be cut, and none may fail. It
// takes 20 seconds, and two minutes with AMBIT_SOAK=1.
func TestSourcePorts(t *testing.T) {
	duration := 20 * time.Second
	if soak() {
		duration = 2 * time.Minute
	} else if testing.Short() {
		duration = 3 * time.Second
	}
	t.Run("usual ports", func(t *testing.T) { sourcePorts(t, "", duration) })
	// The client's own ports are those that the server's proxy has to use: it is left no others.
	t.Run("the proxy's ports", func(t *testing.T) { sourcePorts(t, "20000-22999", 5*time.Second) })
}

// sourcePorts is TestSourcePorts with a range of ports that both sides are limited to; none if it is empty.
func sourcePorts(t *testing.T, limited string, duration time.Duration) {
	const held, perSecond = 1000, 300
	w := newWorld(t)
	n1, n2 := w.node("node1"), w.node("node2")
	client, server := w.pod(n1, "client"), w.pod(n2, "server")
	if limited != "" {
		const settings = "/proc/sys/net/ipv4/"
		w.must(client.Do(func() error {
			return os.WriteFile(settings+"ip_local_port_range", []byte(strings.Replace(limited, "-", " ", 1)), 0o644)
		}))
		w.must(server.Do(func() error {
			return errors.Join(os.WriteFile(settings+"ip_local_port_range", []byte("1024 65535"), 0o644),
				os.WriteFile(settings+"ip_local_reserved_ports", []byte(limited), 0o644))
		}))
	}
	w.listen(server, ":8080", echo)
	set := rules.For(rules.Config{IPv6: true})
	// Connection tracking is on in both, so that hooking leaves alone what exists.
	w.must(w.Kernel.Fill(w.ctx, client.Handle(), set))
	w.must(w.Kernel.Fill(w.ctx, server.Handle(), set))
	w.must(server.Offer(w.ctx))
	w.must(client.Offer(w.ctx))
	w.settle()

	to := addr(server, false, 8080)
	var plain []*watched
	hold := func(n int) {
		for range n {
			plain = append(plain, &watched{held: w.hold(client, to)})
		}
	}
	direct := held
	if limited == "" {
		direct = held / 2
	}
	hold(direct) // to the application itself
	w.must(w.Kernel.Hook(w.ctx, server.Handle(), set))
	hold(held - direct) // through the server's proxy, in plain
	w.must(w.Kernel.Hook(w.ctx, client.Handle(), set))
	w.Control.SetAddresses(server.Address(true), client.Address(true))
	w.settle()

	l := startLoad(client, to, perSecond)
	defer l.end(t)
	stop := make(chan struct{})
	var checks sync.WaitGroup
	for _, p := range plain {
		checks.Go(func() { p.check(stop) })
	}
	<-time.After(duration)
	close(stop)
	checks.Wait()
	cut := 0
	var first error
	for _, p := range plain {
		if p.err != nil {
			cut++
			first = p.err
		}
	}
	if cut > 0 {
		t.Errorf("%d of %d plain connections were cut, one with: %v", cut, held, first)
	}
	l.end(t)
	// How many depends on the machine; fewer would say little.
	if n, want := l.tried.Load(), int64(duration.Seconds()*perSecond/10); n < want {
		t.Errorf("only %d connections were opened, want about %d", n, int(duration.Seconds())*perSecond)
	}
	w.logged(w.proxies[1], "inbound", client.Identity(), to)
}

// watched is a held connection and how it ended.
type watched struct {
	*held
	err error
}

// check exchanges a byte now and then.
func (p *watched) check(stop <-chan struct{}) {
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		if p.err = p.works(); p.err != nil {
			return
		}
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
}
