// Package clustertest brings real clusters up and down, cuts their power and cuts off their making, and looks for what is
// left. It holds tests only. There is one cluster per machine, so its tests run one after the other, and not at all
// while a cluster is up.
package clustertest
