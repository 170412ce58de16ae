package telemetry

import (
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"google.golang.org/protobuf/proto"
)

// latencyBounds are the upper bounds of histogram buckets: from a look-up in the node to the connect time-out of 10 s.
var latencyBounds = [...]time.Duration{
	500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond, 10 * time.Millisecond,
	25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
	time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
}

// histogram counts durations. It is safe for concurrent use.
type histogram struct {
	buckets [len(latencyBounds) + 1]atomic.Uint64 // the last is beyond all bounds
	sum     atomic.Int64                          // in nanoseconds
}

func (h *histogram) observe(d time.Duration) {
	i := 0
	for i < len(latencyBounds) && d > latencyBounds[i] {
		i++
	}
	h.buckets[i].Add(1)
	h.sum.Add(int64(d))
}

// latencyNames are the labels of histograms, sorted. They are fewer than a flow's: a histogram is many series.
var latencyNames = [...]string{
	"connection_security_policy", "destination_service", "destination_workload", "destination_workload_namespace", "reporter",
}

// latencyLabels are the values of latencyNames, in their order.
type latencyLabels [len(latencyNames)]string

// latencyOf picks the labels of a histogram out of a flow's.
func latencyOf(l *labels) latencyLabels {
	return latencyLabels{l[labelSecurity], l[labelService], l[labelWorkload], l[labelWorkloadNamespace], l[labelReporter]}
}

// latencies are the histograms that flows with the same latencyLabels share.
type latencies struct {
	pairs              labelPairs
	connect, firstByte histogram

	sets int // label sets that use them; guarded by Metrics.mu
}

func newLatencies(l latencyLabels) *latencies {
	out := &latencies{}
	for i, name := range latencyNames {
		out.pairs = append(out.pairs, &labelPair{Name: proto.String(name), Value: proto.String(l[i])})
	}
	return out
}

func (l *latencies) collect(d *descriptions, ch chan<- prometheus.Metric) {
	for _, h := range [...]struct {
		desc *prometheus.Desc
		h    *histogram
	}{{d.connect, &l.connect}, {d.firstByte, &l.firstByte}} {
		if m := newSample(h.desc, l.pairs, h.h); m.histogram.GetSampleCount() > 0 {
			ch <- m
		}
	}
}

// sample is one histogram at a scrape.
type sample struct {
	desc      *prometheus.Desc
	pairs     labelPairs
	histogram *dto.Histogram
}

func newSample(desc *prometheus.Desc, pairs labelPairs, h *histogram) *sample {
	out := &dto.Histogram{Bucket: make([]*dto.Bucket, len(latencyBounds))}
	total := uint64(0)
	for i, bound := range latencyBounds {
		total += h.buckets[i].Load()
		out.Bucket[i] = &dto.Bucket{CumulativeCount: proto.Uint64(total), UpperBound: proto.Float64(bound.Seconds())}
	}
	total += h.buckets[len(latencyBounds)].Load()
	out.SampleCount = proto.Uint64(total)
	out.SampleSum = proto.Float64(time.Duration(h.sum.Load()).Seconds())
	return &sample{desc, pairs, out}
}

func (s *sample) Desc() *prometheus.Desc { return s.desc }

func (s *sample) Write(m *dto.Metric) error {
	m.Label, m.Histogram = s.pairs, s.histogram
	return nil
}
