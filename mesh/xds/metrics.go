package xds

import "github.com/prometheus/client_golang/prometheus"

// Values of the reason label of istio_xds_connection_terminations_total: no connection could be made; the server refused
// the stream; it broke; the server ended it.
const (
	reasonConnect   = "ConnectionError"
	reasonError     = "Error"
	reasonReconnect = "Reconnect"
	reasonComplete  = "Complete"
)

// metrics are Istio's of an xDS client.
type metrics struct {
	terminations *prometheus.CounterVec
	messages     *prometheus.CounterVec
	bytes        *prometheus.CounterVec
}

// newMetrics makes and registers metrics; reg may be nil.
func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := &metrics{
		terminations: counter("istio_xds_connection_terminations_total", "Ends of discovery streams, by reason.", "reason"),
		messages:     counter("istio_xds_message_total", "Discovery responses received, by type.", "url"),
		bytes:        counter("istio_xds_message_bytes_total", "Bytes of discovery responses received, by type.", "url"),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.terminations, m.messages, m.bytes} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) terminated(reason string) { m.terminations.WithLabelValues(reason).Inc() }

func (m *metrics) received(url string, bytes int) {
	m.messages.WithLabelValues(url).Inc()
	m.bytes.WithLabelValues(url).Add(float64(bytes))
}
