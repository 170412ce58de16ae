package proxy

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/mesh/buffer"
	"github.com/ambit-mesh/ambit/mesh/hbone"
)

// collector shows what pods hold, as it is at a scrape. What it says of a pod ends with the pod.
type collector struct {
	node *Node

	connections, tunnels, descriptors, held               *prometheus.Desc // by pod
	poolConnections, poolStreams, poolWaiting, handshakes *prometheus.Desc // by pod
	poolHits, poolWaits, poolDials, poolFailures          *prometheus.Desc
	work, delay                                           *prometheus.Desc // by pod
	parked, buffered                                      *prometheus.Desc
}

// Collector returns the metrics of the pods and of what they share.
func (n *Node) Collector() prometheus.Collector {
	pod := func(name, help string, more ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, append([]string{"namespace", "pod"}, more...), nil)
	}
	node := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(name, help, labels, nil)
	}
	return &collector{
		node:            n,
		connections:     pod("ambit_pod_connections", "Connections of a pod that are open or being opened.", "direction"),
		tunnels:         pod("ambit_pod_tunnels", "Tunnel connections of peers to a pod, handshakes included."),
		descriptors:     pod("ambit_pod_descriptors", "File descriptors of a pod's connections, tunnels included."),
		held:            pod("ambit_pod_buffered_bytes", "Bytes of payload that wait in buffers for a pod or for its peers."),
		work:            pod("ambit_pod_work_seconds_total", "Processor time that the proxy has spent for a pod, estimated from its bytes and connections."),
		delay:           pod("ambit_pod_delay_seconds_total", "How long work for a pod was put off since the pod had had its share of a busy proxy."),
		poolConnections: pod("ambit_pool_connections", "Tunnel connections to peers that a pod has."),
		poolStreams:     pod("ambit_pool_streams", "Streams in them that are open or being opened."),
		poolWaiting:     pod("ambit_pool_waiting", "Connections of a pod that wait for a tunnel connection."),
		handshakes:      pod("ambit_pod_handshakes", "Handshakes of peers with a pod that are under way."),
		poolHits:        node("ambit_pool_hits_total", "Tunnels for which a connection was ready."),
		poolWaits:       node("ambit_pool_waits_total", "Tunnels that had to wait for a connection."),
		poolDials:       node("ambit_pool_dials_total", "Attempts to connect to peers."),
		poolFailures:    node("ambit_pool_dial_failures_total", "Attempts to connect to peers that failed, by the stage at which they did.", "stage"),
		parked:          node("ambit_parked_connections", "Idle tunnelled connections, which hold neither a goroutine nor a buffer."),
		buffered:        node("ambit_buffer_bytes", "Bytes of buffers that are in use for payload on its way."),
	}
}

func (c *collector) all() []*prometheus.Desc {
	return []*prometheus.Desc{
		c.connections, c.tunnels, c.descriptors, c.held, c.work, c.delay, c.poolConnections, c.poolStreams, c.poolWaiting, c.handshakes,
		c.poolHits, c.poolWaits, c.poolDials, c.poolFailures, c.parked, c.buffered,
	}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range c.all() {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	seconds := func(d *prometheus.Desc, v time.Duration, name podName) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, v.Seconds(), name.namespace, name.pod)
	}
	for name, h := range c.node.holdings() {
		gauge(c.connections, float64(h.inbound), name.namespace, name.pod, "inbound")
		gauge(c.connections, float64(h.outbound), name.namespace, name.pod, "outbound")
		gauge(c.tunnels, float64(h.tunnels), name.namespace, name.pod)
		gauge(c.descriptors, float64(h.files), name.namespace, name.pod)
		seconds(c.work, h.work, name)
		seconds(c.delay, h.delay, name)
		gauge(c.held, float64(h.held), name.namespace, name.pod)
		gauge(c.poolConnections, float64(h.pool.Connections), name.namespace, name.pod)
		gauge(c.poolStreams, float64(h.pool.Streams), name.namespace, name.pod)
		gauge(c.poolWaiting, float64(h.pool.Waiting), name.namespace, name.pod)
		gauge(c.handshakes, float64(h.handshakes), name.namespace, name.pod)
	}
	counts := &c.node.poolCounts
	counter(c.poolHits, counts.Hits.Load())
	counter(c.poolWaits, counts.Waits.Load())
	counter(c.poolDials, counts.Dials.Load())
	counts.Failures(func(stage string, n uint64) { counter(c.poolFailures, n, stage) })
	if p := c.node.relayer.Parker; p != nil {
		gauge(c.parked, float64(p.Parked()))
	}
	gauge(c.buffered, float64(buffer.InUse()))
}

// podName is what a pod's metrics are labelled with. While a pod ends, its successor may have the same.
type podName struct{ namespace, pod string }

// holding is what pods of one name hold.
type holding struct {
	load
	pool       hbone.PoolStats
	tunnels    int
	handshakes int
	held       int64 // bytes

	work, delay time.Duration
}

func (n *Node) holdings() map[podName]holding {
	all := map[podName]holding{}
	for _, p := range n.snapshot() {
		name := podName{p.pod.Namespace, p.pod.Name}
		h, l, pool := all[name], p.conns.load(), p.pool.Stats()
		h.inbound += l.inbound
		h.outbound += l.outbound
		h.files += l.files + p.tunnelFiles()
		h.tunnels += p.server.Size()
		h.pool.Connections += pool.Connections
		h.pool.Streams += pool.Streams
		h.pool.Waiting += pool.Waiting
		h.held += p.budget.Used()
		h.work += p.party.Work()
		h.delay += p.party.Held()
		h.handshakes += p.server.Stats().Handshakes
		all[name] = h
	}
	return all
}
