// SPDX-License-Identifier: Apache-2.0
module reuseport.invalid/reuseport

go 1.19
